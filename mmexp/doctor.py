"""The plan without weights: `python -m mmexp.doctor recipe=llava15 gpu=a100_80gb`. Run it first; paste it in issues."""

from __future__ import annotations

from mmexp.config import DoctorConfig, Invocation, check_besides, launch, own_keys


def body(invocation: Invocation) -> None:
    """Shapes, tokens, what trains, memory and hours, where it goes, versions; every configuration mistake at once."""
    from mmexp.assemble import experiment
    from mmexp.engine import console, provenance, setup_logging
    from mmexp.hub import published
    from mmexp.present import show_mixture, show_plan, show_trained
    from mmexp.present_size import apply_stage_policy, show_size
    from mmexp.report import plan_table
    from mmexp.sizing import gpu_named
    from mmexp.tuning import describe

    setup_logging()
    own = check_besides(DoctorConfig, invocation.cfg)
    if own.gpu is not None:
        gpu_named(own.gpu)  # a mistyped card is answered before anything is planned
    exp = experiment(invocation, skip=own_keys(DoctorConfig))
    show_plan(exp)
    show_mixture(exp)
    spine = exp.checked.spine
    model = exp.plan.empty()
    parts = apply_stage_policy(exp, model)
    show_trained(describe(parts, spine.stage.policy, spine.stage.lr, spine.stage.lr_by_part))
    show_size(exp, invocation, own, model)
    llm = exp.checked.parts["llm"]
    path = getattr(llm, "path", None) or getattr(llm, "tokenizer", "")
    card = published().get(path, {}).get("tokenizer") or exp.plan.hf_tokenizer.special_tokens_map
    console.print(plan_table([{"token": name, "value": str(value)} for name, value in card.items()], "special tokens"))
    where = f"{spine.paths.outputs}/{spine.name}/{spine.stage.name}/<run_id>"
    epochs = spine.stage.epochs
    steps = spine.stage.max_steps or f"{epochs:g} epoch{'' if epochs == 1 else 's'}"
    console.print(
        f"steps: {steps}, batch {spine.stage.batch_size}, learning rate {spine.stage.lr:g}, seed {spine.seed}"
    )
    console.print(f"run directory: {where}", soft_wrap=True)
    versions = provenance()["versions"]
    console.print("versions: " + ", ".join(f"{name} {version}" for name, version in versions.items()), soft_wrap=True)


if __name__ == "__main__":
    launch(body, config_name="doctor", module="mmexp.doctor")
