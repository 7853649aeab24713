"""OPT in its published format: learned positions with an offset, rows of segments, generation from embeddings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional
from transformers import OPTConfig, OPTForCausalLM

from mmexp.llm import CausalConfig, CausalLlm, Sampling, TinyLlmConfig
from mmexp.model.splice import left_pad
from tests.differences import Differences

LENGTHS = (9, 4, 7)


@pytest.fixture(scope="module", params=["2.7b", "350m"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of two layers; the 350m one embeds narrower than it thinks and normalises behind its layers."""
    torch.manual_seed(0)
    narrow: dict[str, Any] = {"word_embed_proj_dim": 16, "do_layer_norm_before": False}
    config = OPTConfig(
        hidden_size=32, ffn_dim=64, num_hidden_layers=2, num_attention_heads=4, vocab_size=259,
        max_position_embeddings=40, init_std=0.3, **(narrow if request.param == "350m" else {}),
    )  # fmt: skip
    out = tmp_path_factory.mktemp("opt")
    OPTForCausalLM(config).save_pretrained(out)
    TinyLlmConfig().load_tokenizer().save_pretrained(out)
    return out


@pytest.fixture(scope="module")
def llm(folder: Path) -> CausalLlm:
    return CausalConfig(path=str(folder)).build().eval()


@pytest.fixture(scope="module")
def reference(folder: Path) -> OPTForCausalLM:
    return OPTForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()


def rows() -> tuple[torch.Tensor, torch.Tensor]:
    """Padded ids and their attention mask."""
    torch.manual_seed(1)
    mask = torch.zeros(3, 9, dtype=torch.long)
    for row, length in enumerate(LENGTHS):
        mask[row, :length] = 1
    return torch.randint(3, 259, (3, 9)) * mask + (1 - mask), mask


def test_plan_knows_the_width_of_the_embeddings(folder: Path, llm: CausalLlm) -> None:
    spec = CausalConfig(path=str(folder)).spec()
    assert spec.width == llm.embed(torch.tensor([[5]])).shape[-1]
    assert spec.max_length_tokens == 40


def test_flat_and_padded_rows_equal_transformers_with_a_mask(
    differences: Differences, llm: CausalLlm, reference: OPTForCausalLM
) -> None:
    ids, mask = rows()
    labels = ids.masked_fill(mask == 0, -100)
    with torch.no_grad():
        expected = reference(input_ids=ids, attention_mask=mask, labels=labels)
        padded = llm.logits(
            llm.hidden(llm.embed(ids), torch.arange(9).expand(3, 9), tuple((length,) for length in LENGTHS))
        )
        flat_ids = torch.cat([ids[row, :length] for row, length in enumerate(LENGTHS)])[None]
        positions = torch.cat([torch.arange(length) for length in LENGTHS])[None]
        flat = llm.logits(llm.hidden(llm.embed(flat_ids), positions, (LENGTHS,)))
    differences("OPTForCausalLM", "logits, padded", padded[mask == 1], expected.logits[mask == 1], 1e-4, 1e-4)
    differences("OPTForCausalLM", "logits, flat", flat[0], expected.logits[mask == 1], 1e-4, 1e-4)
    shifted = labels[:, 1:]
    loss = functional.cross_entropy(padded[:, :-1][shifted != -100], shifted[shifted != -100])
    differences("OPTForCausalLM", "loss", loss, expected.loss, 1e-4, 1e-4)


@pytest.mark.parametrize("beams", [1, 3])
def test_generation_from_left_padded_embeddings_equals_transformers(
    differences: Differences, llm: CausalLlm, reference: OPTForCausalLM, beams: int
) -> None:
    ids, mask = rows()
    tokenizer = TinyLlmConfig().load_tokenizer()
    embeds, left = left_pad(llm.embed(ids).detach(), LENGTHS)
    texts = llm.generate(embeds, left, tokenizer, Sampling(max_new_tokens=12, num_beams=beams))
    for row, length in enumerate(LENGTHS):
        alone = reference.generate(
            input_ids=ids[row : row + 1, :length], attention_mask=mask[row : row + 1, :length], max_new_tokens=12,
            num_beams=beams, do_sample=False, eos_token_id=2, pad_token_id=0,
        )  # fmt: skip
        said = tokenizer.decode(alone[0, length:], skip_special_tokens=True).strip()
        differences.tokens("OPTForCausalLM", "greedy and beam answers", texts[row], said)


@pytest.mark.parametrize("cached", [True, False])
def test_beams_with_a_length_penalty_equal_transformers(
    llm: CausalLlm, reference: OPTForCausalLM, cached: bool
) -> None:
    ids, _ = rows()
    tokenizer = TinyLlmConfig().load_tokenizer()
    embeds = llm.embed(ids[:1]).detach()
    for penalty, least in ((-1.0, 1), (2.0, 1), (1.0, 8)):
        sampling = Sampling(
            max_new_tokens=10, min_new_tokens=least, num_beams=5, length_penalty=penalty, stop_ids=(2, 40, 41, 42, 43)
        )
        ours = llm.generate(embeds, torch.ones(1, 9, dtype=torch.long), tokenizer, sampling)[0]
        theirs = reference.generate(
            input_ids=ids[:1], attention_mask=torch.ones(1, 9, dtype=torch.long), max_new_tokens=10,
            min_new_tokens=least, num_beams=5, length_penalty=penalty, do_sample=False, use_cache=cached,
            eos_token_id=[2, 40, 41, 42, 43], pad_token_id=0,
        )[0, 9:]  # fmt: skip
        assert ours == tokenizer.decode(theirs, skip_special_tokens=True).strip()


def test_beams_hand_out_the_answer_at_once(llm: CausalLlm) -> None:
    ids, mask = rows()
    shown: list[str] = []
    tokenizer = TinyLlmConfig().load_tokenizer()
    said = llm.generate(
        llm.embed(ids[:1]).detach(), mask[:1], tokenizer, Sampling(max_new_tokens=5, num_beams=2), shown.append
    )
    assert shown == said


def test_published_sizes_need_no_file() -> None:
    for name, width, count in (("2.7b", 2560, 2_651_596_800), ("6.7b", 4096, 6_658_473_984)):
        config = CausalConfig(path=f"facebook/opt-{name}")
        assert config.spec().width == width
        with torch.device("meta"):
            assert sum(p.numel() for p in config.empty().parameters()) == count
