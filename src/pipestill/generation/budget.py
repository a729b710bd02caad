"""The hard budget: a call that might exceed it is never begun."""

from dataclasses import dataclass

from pipestill.config import TeacherConfig
from pipestill.generation.teacher import Completion, Failure


@dataclass
class Budget:
    """Tokens and money for the answers of one step.

    Answers that the journal already holds count as spent, so that a step which is repeated (by a
    person or by an automatic retry) never pays more than the limit in all. A call is admitted only
    if what is spent, what the calls in flight may still cost, and its own upper bound fit together.
    """

    config: TeacherConfig
    prompt_tokens: int = 0
    output_tokens: int = 0
    reserved_prompt: int = 0
    reserved_output: int = 0
    exhausted: bool = False

    @property
    def limited(self) -> bool:
        return self.config.budget_tokens > 0 or self.config.budget_usd > 0

    def admit(self, prompt_tokens: int) -> bool:
        """Reserves a call with at most so many prompt tokens, if it fits."""
        output = self.config.max_new_tokens
        prompt_total = self.prompt_tokens + self.reserved_prompt + prompt_tokens
        output_total = self.output_tokens + self.reserved_output + output
        tokens, usd = self.config.budget_tokens, self.config.budget_usd
        over = tokens and prompt_total + output_total > tokens
        if over or (usd and price(self.config, prompt_total, output_total) > usd):
            self.exhausted = True
            return False
        self.reserved_prompt += prompt_tokens
        self.reserved_output += output
        return True

    def settle(self, prompt_tokens: int, result: Completion | Failure) -> None:
        """Replaces the reservation of a call that has ended by what it took."""
        self.reserved_prompt -= prompt_tokens
        self.reserved_output -= self.config.max_new_tokens
        if isinstance(result, Completion):
            self.spend(result)

    def spend(self, completion: Completion) -> None:
        self.prompt_tokens += completion.prompt_tokens
        self.output_tokens += completion.output_tokens

    def __str__(self) -> str:
        tokens = self.prompt_tokens + self.output_tokens
        usd = price(self.config, self.prompt_tokens, self.output_tokens)
        shown = [
            f"{tokens} of {self.config.budget_tokens} tokens" if self.config.budget_tokens else "",
            f"{usd:.4f} of {self.config.budget_usd:.4f} USD" if self.config.budget_usd else "",
        ]
        return " and ".join(part for part in shown if part)


def price(config: TeacherConfig, prompt_tokens: int, output_tokens: int) -> float:
    """US dollars at the configured prices; cached prompt tokens are counted at the full price."""
    cost = prompt_tokens * config.usd_per_million_input
    cost += output_tokens * config.usd_per_million_output
    return cost / 1e6
