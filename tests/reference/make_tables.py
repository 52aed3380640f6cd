"""Writes tests/fixtures/tables: Parquet files by pyarrow (pip install pyarrow).

    python tests/reference/make_tables.py
"""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

OUT = Path(__file__).resolve().parent.parent / "fixtures" / "tables"


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    prompts = ["Q: 1 + 1\nA: ", "请问，几点了？", 'a "quoted", text']
    completions = ["2", "三点。", ""]
    for compression in ["snappy", "zstd", "none"]:
        table = pa.table({"id": [1, 2, 3], "prompt": prompts, "completion": completions})
        pq.write_table(table, OUT / f"prompts.{compression}.parquet", compression=compression)
    alpaca = pa.table(
        {"instruction": ["Add.", "Greet."], "input": ["1 and 2", None], "output": ["3", "Hello!"]},
        schema=pa.schema([("instruction", pa.large_string()), ("input", pa.string()), ("output", pa.large_string())]),
    )
    pq.write_table(alpaca, OUT / "alpaca.parquet")
    # Columns without a value, as pandas writes them (the type null), and with a type of their own.
    nothing = {"input": pa.nulls(2), "system": pa.nulls(2, pa.float64())}
    nulls = pa.table({"instruction": ["Greet.", "Part."], **nothing, "output": ["Hello!", "Bye!"]})
    pq.write_table(nulls, OUT / "nulls.parquet")
    pq.write_table(pa.table({"prompt": ["a"], "completion": [7]}), OUT / "numbers.parquet")
    pq.write_table(pa.table({"question": ["a"]}), OUT / "columns.parquet")
    turns = [[{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]]
    pq.write_table(pa.table({"messages": turns}), OUT / "messages.parquet")
    # Calls, marks and a system text beside, in two groups of rows: every key in every turn, as structs have them.
    call = {"type": "function", "function": {"name": "hours", "arguments": {"day": 1, "branch": None}}}
    turn = lambda role, content, calls=None, train=None: {
        "role": role, "content": content, "tool_calls": calls, "train": train,
    }
    talks = [
        [turn("user", "When?"), turn("assistant", None, [call])],
        [turn("user", "a"), turn("assistant", "b", train=False)],
        [turn("user", "c"), turn("assistant", "d")],
    ]
    nested = pa.table({"id": [1, 2, 3], "messages": talks, "system": ["Be brief.", None, None]})
    pq.write_table(nested, OUT / "nested.parquet", row_group_size=2)
    pair = {"prompt": [[turn("user", "a")]], "completion": [[turn("assistant", "b")]], "doc": [7]}
    pq.write_table(pa.table(pair), OUT / "pairs.parquet")
    # Texts as pandas categories: stored as dictionaries, which the Arrow schema in the file says.
    categories = pa.table({
        "prompt": pa.array(["a", "b", "a"]).dictionary_encode(),
        "completion": pa.array(["x", None, "z"], pa.large_string()).dictionary_encode(),
        "note": pa.array(["n", "n", "n"]).dictionary_encode(),
    })
    pq.write_table(categories.filter(pa.array([True, False, True])), OUT / "categories.parquet")


if __name__ == "__main__":
    main()
