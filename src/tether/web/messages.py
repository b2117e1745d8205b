"""What the page and the server say to each other: typed, and bounded in size."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

Id = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$")]
Uuid = Annotated[
    str,
    StringConstraints(
        pattern=r"^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$", max_length=36
    ),
]
Name = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=64)]


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class NextRequest(_Request):
    """Asks for comparisons; those that the annotator holds come first, with their time renewed."""

    annotator: Name
    count: Annotated[int, Field(ge=1, le=8)] = 2
    format: Literal["mp4", "webm"] = "mp4"


class AnswerRequest(_Request):
    """An answer, under the UUID that makes sending it twice harmless."""

    uuid: Uuid
    query: Id
    lease: Id | None = None
    annotator: Name
    preference: Annotated[float, Field(ge=0, le=1)] | None = None
    ranking: Annotated[list[Annotated[int, Field(ge=0, lt=64)]], Field(max_length=64)] | None = None
    time: Annotated[float, Field(ge=0)] | None = None
    latency: Annotated[float, Field(ge=0, le=1e7)] | None = None


class UndoRequest(_Request):
    """Takes back the annotator's newest answer that stands."""

    uuid: Uuid
    annotator: Name


class ReleaseRequest(_Request):
    """Gives a comparison back unanswered; skipped, it does not return to its annotator at once."""

    uuid: Uuid
    lease: Id
    query: Id
    annotator: Name
    skip: bool = False


class Turn(BaseModel):
    """One message of a prompt; the role is empty for a plain text."""

    role: str
    content: str


class ItemReply(BaseModel):
    """A clip, which is at ``/clips/ID.mp4`` and ``.webm``, or a text."""

    id: str
    kind: Literal["clip", "text"]
    prompt: list[Turn] | None = None
    completion: str | None = None


class Pair(BaseModel):
    """A comparison of two items, or a ranking of more, and the lease it is given under."""

    query: str
    lease: str
    seconds: float
    context: str
    items: list[ItemReply]


class NextReply(BaseModel):
    """Comparisons; if there are none, why: nothing was asked, others have the rest, and so on."""

    pairs: list[Pair]
    why: Literal["asking", "others", "skipped", "done"] | None


class AnswerReply(BaseModel):
    """The answer is on the disk; the same for each time it is sent."""

    cursor: int
    late: bool
    duplicate: bool


class UndoReply(BaseModel):
    """The comparison that is open again, leased to the annotator; None: there was no answer."""

    pair: Pair | None


class ReleaseReply(BaseModel):
    """Whether the lease was still held."""

    released: bool


class SessionReply(BaseModel):
    """What the page needs to begin.

    Attributes:
        store: names the store, so that a browser keeps apart what it has not sent yet.
        title: what is compared, such as an environment.
        instruction: the question; empty: the page's own.
        goal: how many labels are wanted.
        poll: every how many seconds the page renews its leases.
    """

    store: str
    title: str
    instruction: str
    goal: int | None
    poll: float


class ProgressReply(BaseModel):
    """How far the labelling has come; `per_minute` is the annotator's own pace of late."""

    queries: int
    answered: int
    open: int
    annotators: int
    goal: int | None
    mine: int
    per_minute: float | None


class AnnotatorReply(BaseModel):
    """What one annotator has done; `seconds` is the median time of an answer."""

    name: str
    answers: int
    ties: int
    unsure: int
    undone: int
    late: int
    seconds: float | None
    last: float | None


class AgreementReply(BaseModel):
    """How two annotators agree on what both have answered."""

    first: str
    second: str
    both: int
    same: float | None
    kappa: float | None


class PeopleReply(BaseModel):
    """Every annotator, and how they agree; `alpha` is Krippendorff's."""

    annotators: list[AnnotatorReply]
    pairs: list[AgreementReply]
    alpha: float | None


class Curve(BaseModel):
    """A measurement of the training: (step, value), thinned."""

    title: str
    points: list[tuple[float, float]]


class PolicyClip(BaseModel):
    """The newest segment of the policy, and the step at which it was recorded."""

    item: str
    step: int


class TrainingReply(BaseModel):
    """How the training beside the labelling goes."""

    curves: list[Curve]
    policy: PolicyClip | None
