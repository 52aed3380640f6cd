//! Parquet files with the columns of the JSONL shapes, nested ones too: a list of turns is a list of structs. Read with the
//! reader of polars below its data frames, which have no nested columns without a feature that nothing else needs.

use std::io::Cursor;

use polars_arrow::array::{
    Array, BinaryViewArray, BooleanArray, ListArray, PrimitiveArray, StructArray, Utf8ViewArray,
};
use polars_arrow::datatypes::Field;
use polars_parquet::arrow::read::{
    BasicDecompressor, ColumnChunkMetadata, PageReader, RowGroupMetadata, column_iter_to_arrays, infer_schema,
    n_columns, read_metadata,
};
use polars_parquet::parquet::page::CompressedPage;
use serde_json::{Map, Value};

use super::rows::{Receiver, Rows};
use super::tables::{Kept, check_columns, unread};
use super::{Shape, footer};
use crate::data::example::Row;
use crate::data::position::At;
use crate::error::{Error, Result};

/// The most that a Parquet file may unpack to.
const MAX_UNPACKED_BYTES: usize = 4 << 30;
/// The most values in a column of one row group. The reader makes room for as many as the pages promise.
const MAX_VALUES: usize = 1 << 24;

/// Parses the bytes of a Parquet file; `name` stands in messages.
///
/// # Errors
/// Input: every bad row, equal problems together.
pub fn parse_parquet(bytes: Vec<u8>, name: &str, shape: impl Into<Shape>) -> Result<Vec<Row>> {
    let shape = shape.into();
    let mut rows = Rows::new(name, shape.clone());
    parquet_into(&bytes, name, &shape, Kept::Read, &mut rows)?;
    rows.finish()
}

/// Hands the rows of a Parquet file to `rows`, as objects of its columns.
pub(super) fn parquet_into(
    bytes: &[u8],
    name: &str,
    shape: &Shape,
    kept: Kept,
    rows: &mut impl Receiver,
) -> Result<()> {
    // polars may panic on a damaged file; that, too, is only a bad file.
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| read(bytes, name, shape, kept, rows)))
        .unwrap_or_else(|_| Err(broken(name, &"polars cannot read it")))
}

fn read(bytes: &[u8], name: &str, shape: &Shape, kept: Kept, rows: &mut impl Receiver) -> Result<()> {
    footer::check(bytes).map_err(|error| broken(name, &error))?;
    let mut metadata = read_metadata(&mut Cursor::new(bytes)).map_err(|error| broken(name, &error))?;
    let sizes = metadata.row_groups.iter().map(|group| group.total_byte_size());
    let unpacked = sizes.fold(0usize, usize::saturating_add);
    if unpacked > MAX_UNPACKED_BYTES {
        return Err(Error::input(name, format!("unpacks to {unpacked} bytes; at most {MAX_UNPACKED_BYTES}")));
    }
    // The schema of Arrow that a file may bring types pandas' categories as dictionaries; that of Parquet itself has them as
    // the texts that they are.
    metadata.key_value_metadata = None;
    let schema = infer_schema(&metadata).map_err(|error| broken(name, &error))?;
    let names: Vec<String> = schema.iter_names().map(|column| column.to_string()).collect();
    check_columns(&names, name, shape)?;
    let is_kept = |field: &&Field| kept == Kept::Every || shape.reads(&field.name);
    let fields: Vec<&Field> = schema.iter_values().filter(is_kept).collect();
    let unread = unread(&names, shape);
    let mut rows_before = 0;
    for group in &metadata.row_groups {
        let columns = fields.iter().map(|field| column(group, field, bytes));
        let columns: Vec<_> = columns.collect::<std::result::Result<_, _>>().map_err(|error| broken(name, &error))?;
        let mut cells: Vec<_> = columns.iter().map(|arrays| cells(arrays)).collect();
        for row in 1..=group.num_rows() {
            let mut values = Map::new();
            for (field, cells) in fields.iter().zip(&mut cells) {
                let (array, index) = cells.next().ok_or_else(|| broken(name, &"a column has too few rows"))?;
                let value = value(array, index)
                    .map_err(|found| Error::input(name, format!("the column `{}` holds {found}", field.name)))?;
                values.insert(field.name.to_string(), value);
            }
            let at = At::Row(rows_before + row);
            if !rows.is_too_long(at, values.values().map(text_bytes).sum()) {
                rows.row(at, Value::Object(values), &unread);
            }
        }
        rows_before += group.num_rows();
    }
    Ok(())
}

fn broken(name: &str, error: &dyn std::fmt::Display) -> Error {
    Error::input(name, format!("not a Parquet file: {error}"))
}

/// The values of a field in a row group.
fn column(group: &RowGroupMetadata, field: &Field, bytes: &[u8]) -> std::result::Result<Vec<Box<dyn Array>>, String> {
    let chunks = group.parquet_columns().iter();
    let chunks: Vec<&ColumnChunkMetadata> =
        chunks.filter(|chunk| chunk.descriptor().path_in_schema.first() == Some(&field.name)).collect();
    if n_columns(&field.dtype) != chunks.len() {
        return Err(format!("the parts of the column `{}` are incomplete", field.name));
    }
    let most_values = if field.dtype.is_nested() { MAX_VALUES } else { group.num_rows().min(MAX_VALUES) };
    let (mut pages, mut types) = (Vec::new(), Vec::new());
    for chunk in chunks {
        let range = chunk.byte_range();
        let range = usize::try_from(range.start).ok().zip(usize::try_from(range.end).ok());
        let bytes = range.and_then(|(start, end)| bytes.get(start..end)).ok_or("a column lies outside the file")?;
        // polars makes room for as many values as the column promises, too.
        let fits = usize::try_from(chunk.num_values()).is_ok_and(|values| values <= most_values);
        if !fits {
            return Err(format!("a column of {} values; at most {most_values} are read", chunk.num_values()));
        }
        let reader = || PageReader::new(Cursor::new(bytes.to_vec().into()), chunk, Vec::new(), MAX_UNPACKED_BYTES);
        check_pages(reader(), most_values)?;
        pages.push(BasicDecompressor::new(reader(), Vec::new()));
        types.push(&chunk.descriptor().descriptor.primitive_type);
    }
    let (arrays, _) = column_iter_to_arrays(pages, types, field.clone(), None).map_err(|error| error.to_string())?;
    Ok(arrays)
}

/// Whether the pages hold no more than `most` values. polars makes room for as many as a page promises, and ends the
/// process where there is none.
fn check_pages(pages: PageReader, most: usize) -> std::result::Result<(), String> {
    let mut left = most;
    for page in pages {
        if let CompressedPage::Data(page) = page.map_err(|error| error.to_string())? {
            let too_many = || format!("a page of {} values where at most {left} are left", page.num_values());
            left = left.checked_sub(page.num_values()).ok_or_else(too_many)?;
        }
    }
    Ok(())
}

/// The cells of a column in order: an array, and an index into it.
fn cells(arrays: &[Box<dyn Array>]) -> impl Iterator<Item = (&dyn Array, usize)> {
    arrays.iter().flat_map(|array| (0..array.len()).map(move |index| (&**array, index)))
}

/// One value as JSON: texts, numbers, truth values, lists, and structs without their nulls, since a struct has every field in
/// every row. In words what it is where it is none of these.
fn value(array: &dyn Array, index: usize) -> std::result::Result<Value, String> {
    if array.is_null(index) {
        return Ok(Value::Null);
    }
    let any = array.as_any();
    if let Some(texts) = any.downcast_ref::<Utf8ViewArray>() {
        return Ok(Value::from(texts.value(index)));
    }
    if let Some(bytes) = any.downcast_ref::<BinaryViewArray>() {
        let text = std::str::from_utf8(bytes.value(index)).map_err(|_| "bytes that are no text in UTF-8".to_owned())?;
        return Ok(Value::from(text));
    }
    if let Some(flags) = any.downcast_ref::<BooleanArray>() {
        return Ok(Value::from(flags.value(index)));
    }
    if let Some(lists) = any.downcast_ref::<ListArray<i64>>() {
        return list(&*lists.value(index));
    }
    if let Some(lists) = any.downcast_ref::<ListArray<i32>>() {
        return list(&*lists.value(index));
    }
    if let Some(structs) = any.downcast_ref::<StructArray>() {
        let mut fields = Map::new();
        for (field, values) in structs.fields().iter().zip(structs.values()) {
            let value = value(&**values, index)?;
            if !value.is_null() {
                fields.insert(field.name.to_string(), value);
            }
        }
        return Ok(Value::Object(fields));
    }
    macro_rules! number {
        ($($kind:ty),*) => {
            $(if let Some(numbers) = any.downcast_ref::<PrimitiveArray<$kind>>() {
                return Ok(Value::from(numbers.value(index)));
            })*
        };
    }
    number!(i8, i16, i32, i64, u8, u16, u32, u64, f32, f64);
    Err(format!("values of the type {:?}; expected texts, numbers, lists or structs", array.dtype()))
}

fn list(items: &dyn Array) -> std::result::Result<Value, String> {
    (0..items.len()).map(|index| value(items, index)).collect::<std::result::Result<_, _>>().map(Value::Array)
}

/// The bytes of all texts in a value.
fn text_bytes(value: &Value) -> usize {
    match value {
        Value::String(text) => text.len(),
        Value::Array(items) => items.iter().map(text_bytes).sum(),
        Value::Object(fields) => fields.values().map(text_bytes).sum(),
        _ => 0,
    }
}
