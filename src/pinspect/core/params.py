"""`params.yaml` as typed, checked objects: everything that changes an answer, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, cast

from pydantic import Field, field_validator, model_validator

from pinspect.core.answers import PASSED, AnswerContract
from pinspect.core.drawings import ModeDrawing
from pinspect.core.errors import ParamsError
from pinspect.core.layout import Layout
from pinspect.core.nsoartc_settings import NsoartcSettings, Variant
from pinspect.core.yaml_file import NaturalInt, PositiveInt, Section, Share, check, read_yaml

View = Literal["RAW", "DST"]
ModeName = Annotated[str, Field(pattern=r"\A[A-Za-z][A-Za-z0-9]*(-[A-Za-z0-9]+)*\z")]
PromptKind = Literal["two_image", "one_image", "stacked"]

LORA_PRESETS = {"standard": {"rank": 16, "alpha": 32}, "plus": {"rank": 64, "alpha": 128}}


class ModelParams(Section):
    """Which vision-language model is adapted.

    Attributes:
        family: Name of the model family; see `pinspect.model.families`.
        backend: What trains; `auto` takes Unsloth on an NVIDIA GPU and transformers elsewhere.
        checkpoint: A folder or a Hugging Face hub id; empty for the default of the family.
        revision: Commit of a hub checkpoint.
        trust_remote_code: Whether code that comes with a checkpoint may run.
        precision: What training and answers compute in; `auto` takes bfloat16 if the hardware has instructions for it.
        threads: CPU threads of the stages train and answer. The sums of a matrix product depend on their number, so it
            is fixed: the same weights come out of machines with few and with many cores.
    """

    family: str
    backend: Literal["auto", "transformers", "unsloth"]
    checkpoint: str
    revision: str
    trust_remote_code: bool
    precision: Literal["auto", "bf16", "float32"]
    threads: PositiveInt


class LayoutParams(Section):
    """Rows and columns of the pin field."""

    rows: list[str]
    columns: PositiveInt

    @model_validator(mode="after")
    def _check_layout(self) -> LayoutParams:
        self.layout()
        return self

    def layout(self) -> Layout:
        """Return the layout as a domain object."""
        return Layout(tuple(self.rows), self.columns)


class AnswersParams(Section):
    """The words that an answer may use.

    Attributes:
        shapes: Pin shapes.
        defect_modes: Defect mode -> how the virtual line draws it.
    """

    shapes: Annotated[list[Annotated[str, Field(pattern=r"\A[A-Z0-9]+\z")]], Field(min_length=1)]
    defect_modes: Annotated[dict[ModeName, ModeDrawing], Field(min_length=1)]

    @field_validator("defect_modes", mode="before")
    @classmethod
    def _check_modes(cls, modes: object) -> object:
        listed = isinstance(modes, list)
        if listed:
            raise ValueError("expected one line per mode, such as 'bend: {draw: lean}' (docs/words.md)")
        if isinstance(modes, dict) and PASSED in modes:
            raise ValueError(f"'{PASSED}' is not a defect; leave it out")
        return cast(object, modes)


class VirtualParams(Section):
    """How many captures the virtual line renders for each split.

    Attributes:
        train: Inspected captures for training.
        validation: Inspected captures for validation.
        test: Inspected captures for the test split.
        references: Passed references of each shape.
        defective_share: Share of inspected captures with a defect, 0 to 1.
        seed: Seed of the renderer.
    """

    train: NaturalInt
    validation: NaturalInt = 0
    test: NaturalInt
    references: Annotated[int, Field(ge=2)]
    defective_share: Share
    seed: NaturalInt


class RawParams(Section):
    """How captures are read, stored and split.

    Attributes:
        shards: Number of archives that hold the products of each of the stages raw, dst and composite; 0: a file each.
        max_pixels: Largest image that is decoded, in pixels.
        split_salt: Text that is hashed together with the content of a capture to choose its split.
        validation_share: Share of captures in the validation split.
        test_share: Share of captures in the test split.
        near_duplicate_bits: Captures whose 256-bit perceptual hashes differ by at most this many bits share a split.
        virtual: Sizes of the virtual line.
    """

    shards: Literal[0, 16, 256, 4096] = 0
    max_pixels: PositiveInt
    split_salt: str
    validation_share: Share
    test_share: Share
    near_duplicate_bits: Annotated[int, Field(ge=0, le=255)]
    virtual: VirtualParams

    @model_validator(mode="after")
    def _check_shares(self) -> RawParams:
        if self.validation_share + self.test_share >= 1:
            raise ValueError("validation_share and test_share leave nothing to train on: their sum must be below 1")
        return self


class DstParams(Section):
    """NSOARTC's parts, the unit space and alignment.

    Attributes:
        parts: Names of the parts to use: `BEND1` to `BEND4`, `LINE1`, `LINE2`, `DATUM`, and names of `own_parts`.
        own_parts: Further parts by name, each a matrix of `size` rows of `size` numbers.
        size: Side of a part in pixels.
        stride: Distance between neighboring distances in pixels.
        p: Exponent of the Minkowski distance over the parts' responses.
        variant: `distance` compares all parts; `difference` compares opposite parts and shows frames only.
        scaling: What white means in a DST picture: a constant of the unit space, or the picture's own maximum.
        white_quantile: Quantile of the distances of the references that makes the unit space's constant.
        white: The constant, as a multiple of that quantile.
        minimum_references: Fewest references that make a unit space.
        maximum_shift: Largest shift of a capture in pixels.
    """

    parts: list[str]
    own_parts: dict[str, list[list[float]]]
    size: PositiveInt
    stride: Annotated[int, Field(ge=1, le=64)]
    p: float
    variant: Variant
    scaling: Literal["unit_space", "per_picture"]
    white_quantile: Annotated[float, Field(gt=0.5, le=1.0)]
    white: Annotated[float, Field(ge=1, le=100)]
    minimum_references: Annotated[int, Field(ge=2)]
    maximum_shift: Annotated[float, Field(gt=0)]

    @model_validator(mode="after")
    def _check_parts(self) -> DstParams:
        try:
            self.nsoartc()
        except ParamsError as error:
            raise ValueError(str(error).removeprefix("NSOARTC: ")) from None
        return self

    def nsoartc(self) -> NsoartcSettings:
        """Return the settings of NSOARTC's stage 1."""
        own_parts = {name: tuple(map(tuple, rows)) for name, rows in self.own_parts.items()}
        return NsoartcSettings(tuple(self.parts), self.size, self.stride, self.p, self.variant, own_parts)


class CompositeParams(Section):
    """The pictures that the model sees.

    Attributes:
        cell: Smallest side of the cell of one pin, in pixels.
        token_aligned: Whether the cell is rounded up to whole visual tokens of the model family.
        grid: Whether the address grid is drawn.
        jpeg_quality: Quality of the saved JPEG files.
    """

    cell: Annotated[int, Field(ge=16, le=256)]
    token_aligned: bool
    grid: bool
    jpeg_quality: Annotated[int, Field(ge=50, le=100)]


class ChatParams(Section):
    """Which prompts the chat dataset holds.

    Attributes:
        views: The views that are shown.
        kinds: Prompt kind -> training rows per capture and view.
        one_shot_share: Share of the training rows that are one-shot, where the kind has a worked example.
        seed: Seed of every choice.
    """

    views: Annotated[list[View], Field(min_length=1)]
    kinds: Annotated[dict[PromptKind, PositiveInt], Field(min_length=1)]
    one_shot_share: Share
    seed: NaturalInt


class CheckParams(Section):
    """The answer checks.

    Attributes:
        minimum_rows: Fewest training rows; fewer fail the checks.
    """

    minimum_rows: PositiveInt


class CounterexampleShares(Section):
    """Shares of a view's training rows that become a counterexample of each kind."""

    swapped: Share
    blank: Share
    other_shape: Share
    shuffled_letters: Share

    @model_validator(mode="after")
    def _check_sum(self) -> CounterexampleShares:
        if self.swapped + self.blank + self.other_shape + self.shuffled_letters > 0.5:
            raise ValueError("more than half of the training rows would be counterexamples: lower the shares")
        return self


class CounterexampleParams(Section):
    """Counterexamples of each view: a distance image hardly shows a pin's shape, so it needs other shares."""

    RAW: CounterexampleShares
    DST: CounterexampleShares


class TrainParams(Section):
    """The LoRA adapter and its training; the comments in `params.yaml` explain each value.

    An empty (null) `rank` or `alpha` takes the value of the preset.
    """

    start: str
    vision: bool
    language: bool
    attention: bool
    mlp: bool
    words: bool
    preset: Literal["standard", "plus"]
    rank: Annotated[int, Field(ge=1, le=512)]
    alpha: PositiveInt
    dropout: Annotated[float, Field(ge=0, lt=1)]
    learning_rate: Annotated[float, Field(gt=0, le=1)]
    batch_size: PositiveInt
    part_tokens: PositiveInt
    gradient_checkpointing: bool
    quantization: Literal["auto", "none", "4bit"]
    validations: PositiveInt
    patience: NaturalInt
    camera_share: Share
    mirror: bool
    light_jitter: Annotated[float, Field(ge=0, le=0.7)]
    simple_questions: Share
    counterexamples: CounterexampleParams
    epochs: Annotated[float, Field(gt=0)]
    maximum_steps: PositiveInt
    warmup_share: Share
    weight_decay: Annotated[float, Field(ge=0)]
    maximum_grad_norm: Annotated[float, Field(gt=0)]
    seed: NaturalInt

    @model_validator(mode="before")
    @classmethod
    def _fill_in_preset(cls, values: object) -> object:
        if not isinstance(values, dict):
            return values
        section = cast(dict[str, Any], values)
        preset = LORA_PRESETS.get(str(section.get("preset")), LORA_PRESETS["standard"])
        return section | {name: value for name, value in preset.items() if section.get(name) is None}

    @model_validator(mode="after")
    def _check_targets(self) -> TrainParams:
        if not (self.vision or self.language) or not (self.attention or self.mlp):
            raise ValueError("the adapter would change nothing: switch on vision or language, and attention or mlp")
        return self


class EvaluateParams(Section):
    """What the model is asked on validation and test captures; the first question is production's.

    Attributes:
        view: The view that production inspects.
        kind: The prompt kind that production uses.
        decodings: How answers are decoded; production uses the first.
        wanted_escape_rate: Highest escape rate on validation captures; it decides the threshold on P(defective).
        virtual_kinds: Prompt kinds that are answered for virtual test captures.
        batch_size: Prompts in one forward pass.
    """

    view: View
    kind: PromptKind
    decodings: Annotated[list[Literal["constrained", "free"]], Field(min_length=1, max_length=2)]
    wanted_escape_rate: Annotated[float, Field(ge=0, lt=1)]
    virtual_kinds: list[PromptKind]
    batch_size: PositiveInt


class Params(Section):
    """The whole of `params.yaml`: the product, the model, and a section for each stage that has parameters."""

    layout: LayoutParams
    answers: AnswersParams
    model: ModelParams
    raw: RawParams
    dst: DstParams
    composite: CompositeParams
    chat: ChatParams
    check: CheckParams
    train: TrainParams
    evaluate: EvaluateParams

    def contract(self) -> AnswerContract:
        """Return the answer contract of this product."""
        drawings = dict(self.answers.defect_modes)
        return AnswerContract(self.layout.layout(), tuple(self.answers.shapes), tuple(drawings), drawings)


def load_params(path: str | Path = "params.yaml") -> Params:
    """Read and check `params.yaml`.

    Raises:
        ParamsError: One line per mistake: file, key, the value found and what is allowed.
    """
    path = Path(path)
    return check(read_yaml(path), Params, path)
