"""What must survive a restart and is not a function of the step."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class DataState(BaseModel):
    """Which data the position counts in: under 1 KiB of JSON, the same on every rank."""

    model_config = ConfigDict(extra="forbid")

    made_with: dict[str, str] = Field(default_factory=dict)
    """Setting → value (or a hash of it) of all that decides the order; empty in checkpoints of before it was kept."""
    first_step: int = 0
    """Where this order began: 0, or where the data was changed by `data.on_change: next_epoch`."""
    first_sequence: int = 0
    first_epoch: int = 0
    returns: list[tuple[int, int]] = Field(default_factory=list)
    """(sequence, step) of each rollback since then: from that sequence on, steps are counted from that step again."""


class GuardState(BaseModel):
    """What `pretrain.guards` remembers."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True)

    losses: list[float] = Field(default_factory=list)
    """Of the last accepted steps; kept only where spikes are looked for."""
    in_a_row: int = 0
    """Steps left out since the last accepted one."""
    skipped: int = 0
    rollbacks: int = 0


class TrainState(BaseModel):
    """The run's position. Learning rate, data order, dropout seeds, evaluation and save points follow from it."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True)

    step: int = 0
    """Optimizer steps done."""
    sequences: int = 0
    """Sequences consumed: the position in the data order, whatever the batch size was."""
    data: DataState = Field(default_factory=DataState)
    tokens: int = 0
    """Predicted tokens that were trained on (padding excluded)."""
    validation: list[float] = Field(default_factory=list)
    """Validation losses [nats per token], in order; the plateau schedule reads them."""
    validated_at: int = 0
    """The step of the last complete validation."""
    restarts: int = 0
    """How often the run was resumed."""
    wandb_id: str = ""
    guard: GuardState = Field(default_factory=GuardState)


class CheckpointInfo(BaseModel):
    """`state.json` of a checkpoint: the position, and what it was made with."""

    model_config = ConfigDict(extra="forbid")

    state: TrainState
    world_size: int
    zero_stage: int
    config_hash: str
    dataset_hash: str
    tokenizer_hash: str
    fingerprint: float
    """Mean loss of the saved weights on a fixed batch; compared after a load."""
    versions: dict[str, str]

    @property
    def validation_loss(self) -> float | None:
        """Of the very weights that were saved; None where they were not validated."""
        validated = self.state.validation and self.state.validated_at == self.state.step
        return self.state.validation[-1] if validated else None
