//! Between the columns of a projection and the heads of padded sequences: queries and keys are rotated on the way, keys and
//! values copied for every query head of their group.

use burn::tensor::{self, DType, Device};
use burn_backend::cubecl::dtype_to_storage_type;
use burn_cubecl::{cubecl, tensor::CubeTensor};
use cubecl::prelude::*;

use super::pieces::Piece;
use crate::ops::attention::{Geometry, QkvLayout};
use crate::ops::cube::autograd::{empty, primitive};
use crate::ops::cube::reduce::{units_for, workgroup};

/// The heads of a piece, `[sequences · heads, length, head_dim]` each; queries and keys are rotated.
pub(super) struct Heads {
    pub queries: CubeTensor,
    pub keys: CubeTensor,
    pub values: CubeTensor,
}

/// The numbers of a [`Geometry`] as a kernel's constants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Columns {
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    /// Rotated pairs of values in each head.
    half: usize,
    is_by_head: bool,
}

impl Columns {
    fn of(geometry: &Geometry) -> Self {
        Self {
            heads: geometry.heads,
            kv_heads: geometry.kv_heads,
            head_dim: geometry.head_dim,
            half: geometry.rope.as_ref().map_or(0, |rope| rope.half()),
            is_by_head: geometry.layout == QkvLayout::ByHead,
        }
    }

    /// Query heads of a group.
    fn group(self) -> usize {
        self.heads / self.kv_heads
    }

    /// Distance of the first columns of two heads.
    fn pitch(self) -> usize {
        if self.is_by_head { 3 * self.head_dim } else { self.head_dim }
    }

    /// First column of the first key head.
    fn keys(self) -> usize {
        if self.is_by_head { self.head_dim } else { self.heads * self.head_dim }
    }

    /// First column of the first value head.
    fn values(self) -> usize {
        if self.is_by_head { 2 * self.head_dim } else { (self.heads + self.kv_heads) * self.head_dim }
    }
}

/// Cosines and sines of positions, `[positions, half]`.
pub(super) struct Rotation {
    cos: CubeTensor,
    sin: CubeTensor,
}

impl Rotation {
    /// Those of the positions of a piece; one value where nothing is rotated.
    pub fn of(piece: &Piece, geometry: &Geometry, device: &Device) -> Self {
        match &geometry.rope {
            Some(rope) => {
                let table = rope.device_table(piece.length, device);
                Self { cos: primitive(table.cos), sin: primitive(table.sin) }
            }
            None => {
                let none = primitive(tensor::Tensor::<2>::zeros([1, 1], (device, DType::F32)));
                Self { cos: none.clone(), sin: none }
            }
        }
    }
}

impl Heads {
    /// The heads of the piece's sequences in `qkv`, `[tokens, geometry.qkv_width()]`.
    pub fn split(qkv: &CubeTensor, piece: &Piece, rotation: &Rotation, geometry: &Geometry) -> Self {
        let shape = [piece.sequences * geometry.heads, piece.length, geometry.head_dim];
        let [queries, keys, values] = [(); 3].map(|()| empty(qkv, shape, qkv.dtype));
        // SAFETY: the kernel stays within `queries`, of which keys and values have the size; the spans of a piece lie in `qkv`,
        // and the table has every position of a piece.
        unsafe {
            split_heads::launch_unchecked(
                &qkv.client,
                units_for(shape.iter().product()),
                workgroup(),
                qkv.clone().into_tensor_arg(),
                piece.spans.clone().into_tensor_arg(),
                rotation.cos.clone().into_tensor_arg(),
                rotation.sin.clone().into_tensor_arg(),
                queries.clone().into_tensor_arg(),
                keys.clone().into_tensor_arg(),
                values.clone().into_tensor_arg(),
                Columns::of(geometry),
                dtype_to_storage_type(qkv.dtype),
            );
        }
        Self { queries, keys, values }
    }
}

/// Writes `mixed`, `[sequences · heads, length, head_dim]` in f32, to the rows of `y`, `[tokens, heads · head_dim]`.
pub(super) fn join_output(mixed: CubeTensor, piece: &Piece, geometry: &Geometry, y: &CubeTensor) {
    let values = piece.sequences * piece.length * geometry.heads * geometry.head_dim;
    // SAFETY: the kernel stays within `mixed`, and the spans of a piece lie in `y`.
    unsafe {
        join_heads::launch_unchecked(
            &y.client,
            units_for(values),
            workgroup(),
            mixed.into_tensor_arg(),
            piece.spans.clone().into_tensor_arg(),
            y.clone().into_tensor_arg(),
            Columns::of(geometry),
            dtype_to_storage_type(y.dtype),
        );
    }
}

/// The gradient of the output, `[tokens, heads · head_dim]`, as the heads of the piece in `dtype`.
pub(super) fn split_gradient(gradient: &CubeTensor, piece: &Piece, geometry: &Geometry, dtype: DType) -> CubeTensor {
    let shape = [piece.sequences * geometry.heads, piece.length, geometry.head_dim];
    let heads = empty(gradient, shape, dtype);
    // SAFETY: the kernel stays within `heads`, and the spans of a piece lie in `gradient`.
    unsafe {
        split_output::launch_unchecked(
            &heads.client,
            units_for(shape.iter().product()),
            workgroup(),
            gradient.clone().into_tensor_arg(),
            piece.spans.clone().into_tensor_arg(),
            heads.clone().into_tensor_arg(),
            Columns::of(geometry),
            [dtype_to_storage_type(gradient.dtype), dtype_to_storage_type(dtype)],
        );
    }
    heads
}

/// Writes the gradients of queries, keys and values, in f32, to the rows of `result`, `[tokens, geometry.qkv_width()]`: turned
/// back, and summed over the query heads of a group.
pub(super) fn join_gradients(
    [queries, keys, values]: [CubeTensor; 3],
    piece: &Piece,
    rotation: &Rotation,
    geometry: &Geometry,
    result: &CubeTensor,
) {
    let count = piece.sequences * piece.length * geometry.qkv_width();
    // SAFETY: as in `Heads::split`.
    unsafe {
        join_qkv::launch_unchecked(
            &result.client,
            units_for(count),
            workgroup(),
            queries.into_tensor_arg(),
            keys.into_tensor_arg(),
            values.into_tensor_arg(),
            piece.spans.clone().into_tensor_arg(),
            rotation.cos.clone().into_tensor_arg(),
            rotation.sin.clone().into_tensor_arg(),
            result.clone().into_tensor_arg(),
            Columns::of(geometry),
            dtype_to_storage_type(result.dtype),
        );
    }
}

/// Value `at` of the head whose values begin at `first`, rotated by the cosines and sines from `angles` on.
#[cube]
fn turned<F: Float>(
    values: &Tensor<F>,
    first: usize,
    at: usize,
    cos: &Tensor<f32>,
    sin: &Tensor<f32>,
    angles: usize,
    direction: f32,
    #[comptime] half: usize,
) -> f32 {
    let mut value = f32::cast_from(values[first + at]);
    if at < half {
        let other = f32::cast_from(values[first + at + half]);
        value = value * cos[angles + at] - other * sin[angles + at] * direction;
    } else if at < comptime!(2 * half) {
        let other = f32::cast_from(values[first + at - half]);
        value = value * cos[angles + at - half] + other * sin[angles + at - half] * direction;
    }
    value
}

/// The place of a unit's value among the heads of padded sequences.
#[derive(CubeType, Clone, Copy)]
struct Place {
    at: usize,
    position: usize,
    sequence: usize,
    head: usize,
}

/// The place of this unit's value in `[sequences · heads, length, head_dim]`.
#[cube]
fn place_of_unit(length: usize, #[comptime] columns: Columns) -> Place {
    let dim = comptime!(columns.head_dim);
    let batch = ABSOLUTE_POS / (dim * length);
    let heads = comptime!(columns.heads);
    Place {
        at: ABSOLUTE_POS % dim,
        position: ABSOLUTE_POS / dim % length,
        sequence: batch / heads,
        head: batch % heads,
    }
}

/// The number of the same value in `[tokens, heads · head_dim]`.
#[cube]
fn of_output(place: Place, spans: &Tensor<u32>, #[comptime] columns: Columns) -> usize {
    let row = spans[2 * place.sequence] as usize + place.position;
    (row * comptime!(columns.heads) + place.head) * comptime!(columns.head_dim) + place.at
}

#[cube(launch_unchecked)]
fn split_heads<F: Float>(
    qkv: &Tensor<F>,
    spans: &Tensor<u32>,
    cos: &Tensor<f32>,
    sin: &Tensor<f32>,
    queries: &mut Tensor<F>,
    keys: &mut Tensor<F>,
    values: &mut Tensor<F>,
    #[comptime] columns: Columns,
    #[define(F)] _dtype: ElemType,
) {
    let length = queries.shape(1);
    if ABSOLUTE_POS < queries.shape(0) * length * comptime!(columns.head_dim) {
        let place = place_of_unit(length, columns);
        let mut query = 0.0f32;
        let mut key = 0.0f32;
        let mut value = 0.0f32;
        if place.position < spans[2 * place.sequence + 1] as usize {
            let row = (spans[2 * place.sequence] as usize + place.position) * qkv.shape(1);
            let shared = row + place.head / comptime!(columns.group()) * comptime!(columns.pitch());
            let angles = place.position * comptime!(columns.half);
            let first = row + place.head * comptime!(columns.pitch());
            query = turned::<F>(qkv, first, place.at, cos, sin, angles, 1.0, comptime!(columns.half));
            key = turned::<F>(
                qkv,
                shared + comptime!(columns.keys()),
                place.at,
                cos,
                sin,
                angles,
                1.0,
                comptime!(columns.half),
            );
            value = f32::cast_from(qkv[shared + comptime!(columns.values()) + place.at]);
        }
        queries[ABSOLUTE_POS] = F::cast_from(query);
        keys[ABSOLUTE_POS] = F::cast_from(key);
        values[ABSOLUTE_POS] = F::cast_from(value);
    }
}

#[cube(launch_unchecked)]
fn join_heads<F: Float>(
    mixed: &Tensor<f32>,
    spans: &Tensor<u32>,
    y: &mut Tensor<F>,
    #[comptime] columns: Columns,
    #[define(F)] _dtype: ElemType,
) {
    let length = mixed.shape(1);
    if ABSOLUTE_POS < mixed.shape(0) * length * comptime!(columns.head_dim) {
        let place = place_of_unit(length, columns);
        if place.position < spans[2 * place.sequence + 1] as usize {
            y[of_output(place, spans, columns)] = F::cast_from(mixed[ABSOLUTE_POS]);
        }
    }
}

#[cube(launch_unchecked)]
fn split_output<G: Float, F: Float>(
    gradient: &Tensor<G>,
    spans: &Tensor<u32>,
    result: &mut Tensor<F>,
    #[comptime] columns: Columns,
    #[define(G, F)] _dtypes: [ElemType; 2],
) {
    let length = result.shape(1);
    if ABSOLUTE_POS < result.shape(0) * length * comptime!(columns.head_dim) {
        let place = place_of_unit(length, columns);
        let mut value = 0.0f32;
        if place.position < spans[2 * place.sequence + 1] as usize {
            value = f32::cast_from(gradient[of_output(place, spans, columns)]);
        }
        result[ABSOLUTE_POS] = F::cast_from(value);
    }
}

#[cube(launch_unchecked)]
fn join_qkv<F: Float>(
    queries: &Tensor<f32>,
    keys: &Tensor<f32>,
    values: &Tensor<f32>,
    spans: &Tensor<u32>,
    cos: &Tensor<f32>,
    sin: &Tensor<f32>,
    result: &mut Tensor<F>,
    #[comptime] columns: Columns,
    #[define(F)] _dtype: ElemType,
) {
    let heads = comptime!(columns.heads);
    let dim = comptime!(columns.head_dim);
    let (length, width) = (queries.shape(1), result.shape(1));
    let sequences = queries.shape(0) / heads;
    if ABSOLUTE_POS < sequences * length * width {
        let (column, position) = (ABSOLUTE_POS % width, ABSOLUTE_POS / width % length);
        let sequence = ABSOLUTE_POS / (width * length);
        if position < spans[2 * sequence + 1] as usize {
            // The number of the head among all of queries, keys and values, and which of the three it is of.
            let mut head = column / dim;
            let at = column % dim;
            let mut part = 0usize;
            if comptime!(columns.is_by_head) {
                part = head % 3;
                head /= 3;
            } else if head >= comptime!(columns.heads + columns.kv_heads) {
                part = 2usize.runtime();
                head -= comptime!(columns.heads + columns.kv_heads);
            } else if head >= heads {
                part = 1usize.runtime();
                head -= heads;
            }
            let angles = position * comptime!(columns.half);
            let mut total = 0.0f32;
            if part == 0 {
                let first = ((sequence * heads + head) * length + position) * dim;
                total = turned::<f32>(queries, first, at, cos, sin, angles, -1.0, comptime!(columns.half));
            } else {
                for member in 0..comptime!(columns.group()) {
                    let of_group = sequence * heads + head * comptime!(columns.group()) + member;
                    let first = (of_group * length + position) * dim;
                    if part == 1 {
                        total += turned::<f32>(keys, first, at, cos, sin, angles, -1.0, comptime!(columns.half));
                    } else {
                        total += values[first + at];
                    }
                }
            }
            let row = spans[2 * sequence] as usize + position;
            result[row * width + column] = F::cast_from(total);
        }
    }
}
