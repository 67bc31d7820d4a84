"""Files of records as tests write, read and compare them."""

import json

import pyarrow
import pyarrow.ipc
import pyarrow.parquet


def read_json(path):
    return json.loads(path.read_text(encoding="utf-8"))


def write_json(path, content):
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def read_lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


def write_lines(path, records):
    """JSON lines; a text is written as it stands."""
    lines = (record if isinstance(record, str) else json.dumps(record) for record in records)
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


def write_parquet(path, rows, rows_a_group=None):
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=rows_a_group)
    return path


def write_arrow(path, rows, rows_a_batch=None, is_stream=True):
    """As `datasets.save_to_disk` writes a shard, or in the random access format."""
    table = pyarrow.Table.from_pylist(rows)
    with (pyarrow.ipc.new_stream if is_stream else pyarrow.ipc.new_file)(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=rows_a_batch)
    return path


def contents(folder):
    """The bytes of every file below a folder, by its path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
