"""`params.yaml` as typed, checked objects: the one place that reads it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from pinspect.core.answers import PASSED, AnswerContract
from pinspect.core.errors import ParamsError
from pinspect.core.layout import Layout

Share = Annotated[float, Field(ge=0.0, le=1.0)]
PositiveInt = Annotated[int, Field(ge=1)]
NaturalInt = Annotated[int, Field(ge=0)]
View = Literal["RAW", "DST"]
PromptKind = Literal["two_image", "one_image", "stacked"]
Score = Literal[
    *("exact_match", "balanced_accuracy", "address_on_defective", "mode_on_defective"),
    *("escape_rate", "overkill_rate", "parse_rate", "auroc", "ece"),
]

LORA_PRESETS = {"standard": {"rank": 16, "alpha": 32}, "plus": {"rank": 64, "alpha": 128}}


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class ModelParams(_Section):
    """Which vision-language model is adapted. checkpoint: a folder or a hub id, empty for the family's own."""

    family: str
    backend: Literal["auto", "transformers", "unsloth"]
    checkpoint: str
    revision: str
    trust_remote_code: bool


class LayoutParams(_Section):
    """Rows and columns of the pin field."""

    rows: list[str]
    columns: PositiveInt

    @model_validator(mode="after")
    def _is_a_layout(self) -> LayoutParams:
        self.layout()
        return self

    def layout(self) -> Layout:
        """The layout as the domain object that everything else takes."""
        return Layout(tuple(self.rows), self.columns)


class AnswersParams(_Section):
    """The words that an answer may use."""

    shapes: Annotated[list[Annotated[str, Field(pattern=r"\A[A-Z0-9]+\z")]], Field(min_length=1)]
    defect_modes: Annotated[list[Annotated[str, Field(pattern=r"\A[a-z]+\z")]], Field(min_length=1)]

    @field_validator("defect_modes")
    @classmethod
    def _passed_is_no_defect(cls, modes: list[str]) -> list[str]:
        if PASSED in modes:
            raise ValueError(f"'{PASSED}' is not a defect; leave it out")
        return modes


class VirtualParams(_Section):
    """How many captures the virtual line renders."""

    train: NaturalInt
    validation: NaturalInt = 0
    test: NaturalInt
    references: Annotated[int, Field(ge=2)]
    defective_share: Share
    seed: NaturalInt


class RawParams(_Section):
    """Reading captures and splitting them."""

    max_pixels: PositiveInt
    split_salt: str
    validation_share: Share
    test_share: Share
    near_duplicate_bits: Annotated[int, Field(ge=0, le=255)]
    virtual: VirtualParams

    @model_validator(mode="after")
    def _something_is_left_to_train_on(self) -> RawParams:
        if self.validation_share + self.test_share >= 1:
            raise ValueError("validation_share and test_share leave nothing to train on: their sum must be below 1")
        return self


class DstParams(_Section):
    """NSOARTC windows, the unit space and alignment (px)."""

    window: Annotated[int, Field(ge=1, le=63)]
    stride: Annotated[int, Field(ge=1, le=64)]
    minimum_references: Annotated[int, Field(ge=2)]
    scale_quantile: Annotated[float, Field(gt=0.5, le=1.0)]
    maximum_shift: Annotated[float, Field(gt=0)]

    @field_validator("window")
    @classmethod
    def _has_a_centre(cls, window: int) -> int:
        if window % 2 == 0:
            raise ValueError(f"a window needs a centre pixel: an odd number, found {window}")
        return window


class CompositeParams(_Section):
    """The pictures that the model sees."""

    cell: Annotated[int, Field(ge=16, le=256)]
    token_aligned: bool
    grid: bool
    jpeg_quality: Annotated[int, Field(ge=50, le=100)]


class ChatParams(_Section):
    """Which prompts the chat dataset holds."""

    views: Annotated[list[View], Field(min_length=1)]
    kinds: Annotated[dict[PromptKind, PositiveInt], Field(min_length=1)]
    one_shot_share: Share
    seed: NaturalInt


class CheckParams(_Section):
    """The answer checks."""

    minimum_rows: PositiveInt


class CounterexampleParams(_Section):
    """Shares of the training rows that become a counterexample of each kind."""

    swapped: Share
    blank: Share
    other_shape: Share
    shuffled_letters: Share

    @model_validator(mode="after")
    def _leaves_rows_as_they_are(self) -> CounterexampleParams:
        if self.swapped + self.blank + self.other_shape + self.shuffled_letters > 0.5:
            raise ValueError("more than half of the training rows would be counterexamples: lower the shares")
        return self


class TrainParams(_Section):
    """The LoRA adapter and its training. rank and alpha left empty (null) are those of the preset."""

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
    accumulation: PositiveInt
    gradient_checkpointing: bool
    precision: Literal["auto", "bf16", "float32"]
    quantization: Literal["auto", "none", "4bit"]
    patience: NaturalInt
    camera_share: Share
    mirror: bool
    light_jitter: Annotated[float, Field(ge=0, le=0.7)]
    counterexamples: CounterexampleParams
    epochs: Annotated[float, Field(gt=0)]
    maximum_steps: PositiveInt
    warmup_share: Share
    weight_decay: Annotated[float, Field(ge=0)]
    maximum_grad_norm: Annotated[float, Field(gt=0)]
    seed: NaturalInt

    @model_validator(mode="before")
    @classmethod
    def _preset_fills_in_rank_and_alpha(cls, found: object) -> object:
        if not isinstance(found, dict):
            return found
        preset = LORA_PRESETS.get(str(found.get("preset")), LORA_PRESETS["standard"])
        return found | {name: value for name, value in preset.items() if found.get(name) is None}

    @model_validator(mode="after")
    def _adapts_something(self) -> TrainParams:
        if not (self.vision or self.language) or not (self.attention or self.mlp):
            raise ValueError("the adapter would change nothing: switch on vision or language, and attention or mlp")
        return self


class EvaluateParams(_Section):
    """Scoring: what production inspects with (view, kind, the first decoding) makes the headline.

    wanted_escape_rate decides the operating point. bounds: what the scores are held against.
    """

    view: View
    kind: PromptKind
    decodings: Annotated[list[Literal["constrained", "free"]], Field(min_length=1, max_length=2)]
    wanted_escape_rate: Annotated[float, Field(ge=0, lt=1)]
    virtual_kinds: list[PromptKind]
    bounds: dict[Score, Share]
    batch_size: PositiveInt
    confidence: Annotated[float, Field(gt=0.5, lt=1)]
    bootstrap_samples: PositiveInt
    seed: NaturalInt


class RegisterParams(_Section):
    """Where adapters are registered."""

    model_name: Annotated[str, Field(pattern=r"\A[\w.-]+\z")]
    experiment: Annotated[str, Field(min_length=1)]
    tracking_uri: str


class PromoteParams(_Section):
    """What a challenger has to prove on the test split before it becomes champion."""

    maximum_escape_rate: Share
    maximum_overkill_rate: Share
    minimum_defective: PositiveInt
    significance: Annotated[float, Field(gt=0, lt=1)]
    required_controls: list[Literal["blank", "swapped", "other_shape", "shuffled_letters", "lighting"]]
    approval_required: bool


class DriftParams(_Section):
    """When the station says that the line has changed, by its latest captures against those that the model learnt from.

    window: captures that are looked at; minimum: fewer tell nothing. significance: of the two-sample test by which a
    quantity counts as changed, shared among all quantities. minimum_effect: Kolmogorov-Smirnov distances below it are
    no matter, however sure.
    """

    window: PositiveInt = 200
    minimum: PositiveInt = 30
    significance: Annotated[float, Field(gt=0, lt=1)] = 0.001
    minimum_effect: Share = 0.3


class StationParams(_Section):
    """The inspection station: where it listens, what it accepts, how it keeps results. Nothing of it changes an answer.

    results: SQLAlchemy URL of the results table, empty for sqlite in data/station/. keep_days: how long uploaded
    pictures are kept, corrected or not; the results themselves stay. queue: captures that may wait; the next one is
    turned away (429). requests_a_minute: of one client.
    """

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    workers: Annotated[int, Field(ge=1, le=32)] = 1
    language: Literal["en", "ja"] = "en"
    results: str = ""
    keep_days: PositiveInt = 90
    batch_size: Annotated[int, Field(ge=1, le=256)] = 16
    queue: PositiveInt = 64
    timeout_seconds: Annotated[float, Field(gt=0)] = 30.0
    champion_check_seconds: Annotated[float, Field(gt=0)] = 5.0
    upload_bytes: PositiveInt = 20_000_000
    images_a_request: PositiveInt = 16
    requests_a_minute: PositiveInt = 1200
    drift: DriftParams = DriftParams()


class Params(_Section):
    """The whole of `params.yaml`: the product, the model, a section for each stage, promotion and the station.

    A version of before the station has packed parameters without that section: it has defaults.
    """

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
    register_: Annotated[RegisterParams, Field(alias="register")]
    promote: PromoteParams
    station: StationParams = StationParams()

    def contract(self) -> AnswerContract:
        """The answer contract of this product."""
        return AnswerContract(self.layout.layout(), tuple(self.answers.shapes), tuple(self.answers.defect_modes))


def load_params(path: str | Path = "params.yaml") -> Params:
    """Read and check `params.yaml`.

    Raises ParamsError that names the file, the key, what was found and what is allowed; several problems are told at
    once, one a line.
    """
    path = Path(path)
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ParamsError(f"{path}: not found; run this in the project's folder") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ParamsError(f"{path}: not readable as YAML: {' '.join(str(error).split())}") from None
    if not isinstance(found, dict):
        raise ParamsError(f"{path}: expected sections such as 'train:', found {type(found).__name__}")
    try:
        return Params.model_validate(found)
    except ValidationError as error:
        raise ParamsError("\n".join(_explain(path, problem) for problem in error.errors())) from None


def _explain(path: Path, problem: dict) -> str:
    key = ".".join(str(part) for part in problem["loc"]) or "(file)"
    if problem["type"] == "extra_forbidden":
        return f"{path}: {key}: unknown key; remove it or correct its spelling"
    if problem["type"] == "missing":
        return f"{path}: {key}: missing"
    message = problem["msg"].removeprefix("Value error, ")
    return f"{path}: {key}: {message[0].lower()}{message[1:]}, found {problem['input']!r}"
