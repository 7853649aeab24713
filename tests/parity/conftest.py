"""`python -m pytest tests/parity` runs every comparison with a public class or a published equation, also those that
are tests of a room, and prints one table of the largest differences."""

from __future__ import annotations

from pathlib import Path

import pytest

HERE = Path(__file__).parent
ELSEWHERE = (
    "encoder/test_hf_vision.py::test_features_equal_transformers_hidden_states",
    "encoder/test_lavis.py::test_eva_equals_the_published_equations",
    "encoder/test_lavis.py::test_eva_equals_timm",
    "encoder/test_lavis.py::test_clip_equals_open_clip",
    "encoder/test_open_clip.py::test_features_equal_the_tower_s_own",
    "encoder/test_open_clip.py::test_qwen_vl_has_no_class_token_and_resizes_positions_in_the_pass",
    "connector/test_qformer.py::test_without_text_equal_to_transformers",
    "connector/test_qformer.py::test_with_text_equal_to_instructblip",
    "connector/test_resampler.py::test_equals_the_published_steps",
    "objective/test_blip2.py::test_losses_and_gradients_equal_the_equations",
    "objective/test_blip2.py::test_two_ranks_sum_to_one",
    "llm/test_opt.py::test_flat_and_padded_rows_equal_transformers_with_a_mask",
    "llm/test_opt.py::test_generation_from_left_padded_embeddings_equals_transformers",
    "llm/test_seq2seq.py::test_loss_and_logits_equal_transformers",
    "llm/test_seq2seq.py::test_answers_equal_transformers",
    "llm/test_qwen.py::test_logits_equal_those_of_the_published_computation",
    "llm/test_qwen.py::test_answers_follow_the_published_computation",
    "hf/test_retrieval_export.py::test_transformers_gives_the_same_scores",
    "hf/test_instructblip_export.py::test_transformers_says_the_same",
    "model/test_instruction.py::test_real_questions_through_our_processor",
)


def pytest_configure(config: pytest.Config) -> None:
    """Only where this folder itself was asked for: a run of the whole suite has them in their rooms."""
    if any((config.invocation_params.dir / arg).resolve() == HERE for arg in config.args):
        config.args += [str(HERE.parent / name) for name in ELSEWHERE]
