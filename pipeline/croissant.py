"""Croissant metadata of a mix (1.0, mlcommons.org/croissant): its files with checksums, and its columns."""

import json
from collections.abc import Iterable

import pyarrow as pa

from pipeline import storage
from pipeline.commit import Record, files_of
from pipeline.runs import Run
from pipeline.schemas import MIX

FILE = "croissant.json"
_SPEC = "http://mlcommons.org/croissant/1.0"
_TYPES = {
    pa.string(): "sc:Text",
    pa.bool_(): "sc:Boolean",
    pa.int32(): "sc:Integer",
    pa.int64(): "sc:Integer",
}
_CONTEXT = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "sc": "https://schema.org/",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "dct": "http://purl.org/dc/terms/",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileObject": "cr:fileObject",
    "fileProperty": "cr:fileProperty",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "parentField": "cr:parentField",
    "path": "cr:path",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}

_TABLES = {  # read from the folder that croissant.json lies in
    "@type": "cr:FileSet",
    "@id": "tables",
    "name": "tables",
    "description": "A row for every source sample, beside each tar.",
    "encodingFormat": "application/x-parquet",
    "includes": "*.parquet",
}


def write(run: Run, records: Iterable[Record], about: dict[str, str]) -> None:
    """Writes croissant.json beside the shards; about: description, and license and url if known."""
    shards = sorted(record.shard for record in records)
    files = [_file(name, said) for s in shards for name, said in files_of(run, s).items()]
    data = {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": _SPEC,
        "name": run.name,
        **about,
        "distribution": [*files, _TABLES],
        "recordSet": [_samples()],
    }
    storage.write_bytes(run.file(FILE), json.dumps(data, indent=1, ensure_ascii=False).encode())


def amend(folder: str, about: dict[str, str]) -> None:
    """Says more of a data set whose croissant.json is there."""
    url = storage.join(folder, FILE)
    told = json.loads(storage.read_bytes(url)) | about
    storage.write_bytes(url, json.dumps(told, indent=1, ensure_ascii=False).encode())


def _file(name: str, said: dict) -> dict:
    is_tar = name.endswith(".tar")
    return {
        "@type": "cr:FileObject",
        "@id": name,
        "name": name,
        "contentUrl": name,
        "contentSize": f"{said['size']} B",
        "encodingFormat": "application/x-tar" if is_tar else "application/x-parquet",
        "sha256": said["sha256"],
    }


def _samples() -> dict:
    return {
        "@type": "cr:RecordSet",
        "@id": "samples",
        "name": "samples",
        "description": "Every source sample; those of status `ok` are in the tar of the same name.",
        "field": [_field(field) for field in MIX],
    }


def _field(field: pa.Field) -> dict:
    return {
        "@type": "cr:Field",
        "@id": f"samples/{field.name}",
        "name": field.name,
        "dataType": _TYPES[field.type],
        "source": {"fileSet": {"@id": "tables"}, "extract": {"column": field.name}},
    }
