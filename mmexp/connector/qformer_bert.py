"""A Q-Former that starts from BERT."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from mmexp import hub
from mmexp.errors import CheckpointError

if TYPE_CHECKING:
    from mmexp.connector.qformer import Qformer, QformerConfig

_BERT_NAMES = {"width": "hidden_size", "num_layers": "num_hidden_layers", "num_heads": "num_attention_heads",
               "ffn_width": "intermediate_size"}  # fmt: skip


def take_bert(qformer: Qformer, config: QformerConfig, path: str) -> None:
    """Copies what BERT has; a word embedding with more rows keeps its further rows as they are.

    Raises:
        CheckpointError: there is no such checkpoint, or it is of another size.
    """
    from transformers import BertForMaskedLM

    source = hub.resolve(path, "connector.init")
    card = hub.read_config(path, None, "connector.init")
    wrong = [f"{theirs} {card.get(theirs)}, here {getattr(config, ours)}" for ours, theirs in _BERT_NAMES.items()
             if card.get(theirs) != getattr(config, ours)]  # fmt: skip
    if wrong:
        raise CheckpointError("; ".join(wrong), expected="a BERT of the Q-Former's size", where="connector.init")
    try:
        bert: Any = BertForMaskedLM.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise hub.unavailable(source, error, "connector.init", CheckpointError) from error
    theirs = bert.state_dict()
    with torch.no_grad():
        for name, tensor in qformer.state_dict().items():
            twin = name.replace("intermediate_query", "intermediate").replace("output_query", "output")
            given = theirs.get(twin)
            if given is not None:
                rows = tensor if given.shape == tensor.shape else tensor[: len(given)]
                rows.copy_(given[: len(rows)])
