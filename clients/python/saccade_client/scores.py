"""How likely given continuations are."""

from pydantic import Field

from saccade_client.answers import Generation
from saccade_client.errors import AnswerInvalid
from saccade_client.receipts import Receipt
from saccade_client.wire import Wire


class ContinuationScore(Wire):
    """How likely a continuation is: `logprob` is the sum of `token_logprobs`, in nats.

    `is_greedy`: each token is the likeliest where it stands.
    """

    index: int = 0
    logprob: float
    is_greedy: bool
    token_count: int
    tokens: list[str] = Field(default_factory=list)
    token_ids: list[int] = Field(default_factory=list)
    token_logprobs: list[float] = Field(default_factory=list)


class Scores(Generation):
    """The answer of /v1/score, in the order of the continuations."""

    object: str = "score"
    scores: list[ContinuationScore]
    interventions_applied: Receipt = Field(default_factory=list)

    @property
    def logprobs(self) -> list[float]:
        """The log probability of each continuation."""
        return [score.logprob for score in self.scores]

    @property
    def likeliest(self) -> int:
        """The place of the likeliest continuation; of equal ones the first.

        Raises AnswerInvalid if there is none.
        """
        if not self.scores:
            raise AnswerInvalid("the answer has no scores")
        return max(range(len(self.scores)), key=lambda index: self.scores[index].logprob)
