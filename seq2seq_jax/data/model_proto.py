"""The parts of a SentencePiece model's file that are read or changed here, for any version of protobuf.

SentencePiece's own module for this demands the newest protobuf, which other packages may not allow. Fields that are not
named here are kept as they are.
"""

from __future__ import annotations

import functools
from typing import Any

LEARNED, UNKNOWN, CONTROL = 1, 2, 3  # kinds of pieces
ALGORITHMS = {1: "unigram", 2: "bpe", 3: "word", 4: "char"}  # by trainer_spec.model_type

_Field = tuple[str, int, str, str]  # name, number, type, default
_FIELDS: dict[str, tuple[_Field, ...]] = {
    "Piece": (("piece", 1, "STRING", ""), ("score", 2, "FLOAT", "0"), ("type", 3, "INT32", str(LEARNED))),
    "TrainerSpec": (
        ("model_type", 3, "INT32", "1"),
        ("vocab_size", 4, "INT32", "8000"),
        ("unk_id", 40, "INT32", "0"),
        ("bos_id", 41, "INT32", "1"),
        ("eos_id", 42, "INT32", "2"),
        ("pad_id", 43, "INT32", "-1"),
        ("unk_piece", 45, "STRING", "<unk>"),
        ("bos_piece", 46, "STRING", "<s>"),
        ("eos_piece", 47, "STRING", "</s>"),
        ("pad_piece", 48, "STRING", "<pad>"),
    ),
}


def parse_model(data: bytes) -> Any:
    """The message in a model's file: `pieces` (piece, score, type) and `trainer_spec`.

    Raises:
        google.protobuf.message.DecodeError: the bytes are no message.
    """
    return _model_class().FromString(data)


@functools.cache
def _model_class() -> Any:
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="sentencepiece_model.proto", package="seq2seq_jax", syntax="proto2")
    for name, fields in _FIELDS.items():
        message = file.message_type.add(name=name)
        for field, number, kind, default in fields:
            message.field.add(
                name=field,
                number=number,
                type=getattr(kinds, f"TYPE_{kind}"),
                label=kinds.LABEL_OPTIONAL,
                default_value=default,
            )
    model = file.message_type.add(name="Model")
    for field, number, name, label in (
        ("pieces", 1, "Piece", kinds.LABEL_REPEATED),
        ("trainer_spec", 2, "TrainerSpec", kinds.LABEL_OPTIONAL),
    ):
        model.field.add(
            name=field, number=number, type=kinds.TYPE_MESSAGE, type_name=f".seq2seq_jax.{name}", label=label
        )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("seq2seq_jax.Model"))
