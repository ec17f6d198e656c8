"""Built-in verifiers, called as TRL calls rewards."""

from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from typing import Any

import pytest

from klent.config import GymSettings
from klent.tasks import GymTask
from klent.tasks.verifiers import exact, find_last_number, gsm8k, gym, last_number, math_verify


def one(verifier: Any, completion: Any, **columns: Any) -> float | None:
    (score,) = verifier(prompts=["?"], completions=[completion], **{k: [v] for k, v in columns.items()})
    return score


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("", None),
        ("no digits, none.", None),
        ("42", 42),
        ("= 42.", 42),
        ("so -3", -3),
        ("so −3", -3),  # U+2212
        ("x=-3", -3),
        ("+7", 7),
        ("10-3", 3),
        ("10 - 3", 3),
        ("f(2)-3", 3),
        ("1,234,567.50", Fraction("1234567.5")),
        ("1{,}234", 1234),
        ("1,2", 2),
        ("1, 2, 30", 30),
        ("12,3456", 3456),
        (".5", Fraction(1, 2)),
        ("-.5", Fraction(-1, 2)),
        ("3.", 3),
        ("$5.00", 5),
        ("-$5", -5),
        ("€1,000", 1000),
        ("50%", 50),
        ("3/4", Fraction(3, 4)),
        ("-3/4", Fraction(-3, 4)),
        ("3/0", 3),
        ("1e-3", Fraction(1, 1000)),
        ("2E3", 2000),
        ("9e99999999999", 9),  # an exponent that would fill the memory is none
        ("**42**", 42),
        ("\\boxed{-17}", -17),
        ("#### 72", 72),
        ("<answer>8</answer>", 8),
        ("007", 7),
        ("12 m2", 12),
        ("x2", None),
        ("_42_", 42),
        ("5kg", 5),
        ("a)42", 42),
        ("$-5", -5),
        ("5 -3", -3),
        ("9" * 5000, None),
    ],
)
def test_the_last_number(text: str, number: Any) -> None:
    assert find_last_number(text) == number


def test_exact_ignores_white_space_at_the_ends_only() -> None:
    assert one(exact, " Paris\n", answer="Paris ") == 1.0
    assert one(exact, "paris", answer="Paris") == 0.0
    assert one(exact, "Paris.", answer="Paris") == 0.0
    assert one(exact, "7", answer=7) == 1.0
    assert one(exact, "b", answer=["a", "b"]) == 1.0
    assert one(exact, "x", answer=None) is None


def test_last_number_compares_values() -> None:
    assert one(last_number, "it is 5.00 dollars", answer="5") == 1.0
    assert one(last_number, "5 or 6", answer=5) == 0.0
    assert one(last_number, "nothing", answer="5") == 0.0
    assert one(last_number, "0.5", answer="1/2") == 1.0
    assert one(last_number, "0.1", answer=0.1) == 1.0
    assert one(last_number, "four", answer="four") is None  # an answer without a number cannot be compared


@pytest.mark.parametrize("verifier", [exact, last_number, math_verify])
def test_messages_and_either_column(verifier: Any) -> None:
    message = [{"role": "assistant", "content": "42"}]
    assert one(verifier, message, answer="42") == 1.0
    assert one(verifier, message, solution="42", other="?") == 1.0
    assert one(verifier, message, answer="41", solution="42") == 0.0  # answer comes first


@pytest.mark.parametrize("verifier", [exact, last_number, math_verify])
def test_without_an_answer_column(verifier: Any) -> None:
    with pytest.raises(KeyError, match=r"no column 'answer' or 'solution' .*columns are: label"):
        one(verifier, "42", label="42")


@pytest.mark.parametrize(
    ("completion", "answer", "score"),
    [
        ("The result is $\\frac{1}{2}$.", "0.5", 1.0),
        ("Thus \\boxed{\\frac{2}{4}}", "\\frac{1}{2}", 1.0),
        ("It is $3x + 1$", "$1 + 3x$", 1.0),
        ("$\\{1, 2\\}$", "$\\{2, 1\\}$", 1.0),
        ("It is 4", "5", 0.0),
        ("I do not know", "5", 0.0),
        ("5", "", None),
        ("5", None, None),
    ],
)
def test_math_verify(completion: str, answer: Any, score: float | None) -> None:
    assert one(math_verify, completion, answer=answer) == score


def test_math_verify_sets_no_alarm() -> None:
    # the library's own limits need the main thread; outside it they would raise
    with ThreadPoolExecutor(1) as thread:
        assert thread.submit(one, math_verify, "$\\frac{2}{4}$", answer="0.5").result() == 1.0


def test_gym_scores_with_the_generator_own_verifier() -> None:
    task = GymTask(GymSettings(gym="chain_sum"))
    prompt = task.train(0)
    task.close()
    answer = prompt.columns["answer"]
    assert one(gym, answer, gym=prompt.columns["gym"]) == 1.0
    assert one(gym, f" {answer}.0\n", gym=prompt.columns["gym"]) == 1.0  # chain_sum allows trailing decimals
    assert one(gym, f"I think <answer> {answer} </answer> it is", gym=prompt.columns["gym"]) == 1.0
    wrong = one(gym, str(int(answer) + 1), gym=prompt.columns["gym"])
    assert wrong is not None
    assert wrong < 0.5


def test_gym_verifies_more_than_one_right_answer() -> None:
    # countdown accepts any expression with the right value, so the whole entry must be there, not its answer
    task = GymTask(
        GymSettings(
            gym="countdown", config={"min_numbers": 3, "max_numbers": 3, "min_value": 2, "max_value": 9}
        ),
        seed=1,
    )
    products = [p for p in map(task.train, range(20)) if set(p.columns["answer"]) <= set("23456789*")]
    task.close()
    factors = products[0].columns["answer"].split("*")
    others = {"*".join(factors[::-1]), "*".join(factors[1:] + factors[:1])} - {products[0].columns["answer"]}
    assert others
    for other in others:
        assert one(gym, other, gym=products[0].columns["gym"]) == 1.0


GOLD = "Natalia sold 48/2 = <<48/2=24>>24 clips in May.\n#### "


@pytest.mark.parametrize(
    ("completion", "answer", "score"),
    [
        ("#### 72", GOLD + "72", 1.0),
        ("#### 72 ", GOLD + " 72\n", 1.0),
        ("so 48 + 24 = 72 clips", GOLD + "72", 1.0),
        ("She sold 72 clips.", GOLD + "72", 1.0),
        ("She sold 72 clips in 2 months.", GOLD + "72", 0.0),  # without ####, the last number is what is said
        ("#### 72 clips in 2 months", GOLD + "72", 1.0),
        ("72\n#### 24", GOLD + "72", 0.0),
        ("#### 24\nwrong, so\n#### 72", GOLD + "72", 1.0),
        ("#### 48 + 24 = 72", GOLD + "72", 1.0),
        ("####\n72", GOLD + "72", 1.0),
        ("####72", GOLD + "72", 1.0),
        ("#### \\boxed{72}", GOLD + "72", 1.0),
        ("\\boxed{72} is what 48 and 24 give", GOLD + "72", 1.0),
        ("\\boxed{72 \\text{ clips}}, 24 in May", GOLD + "72", 1.0),
        ("#### none", GOLD + "72", 0.0),
        ("", GOLD + "72", 0.0),
        ("#### 48 + 24 =", GOLD + "72", 0.0),
        ("#### 1,072", GOLD + "1072", 1.0),
        ("#### 1072", GOLD + "1,072", 1.0),
        ("#### 1\u202f072\u00a0km", GOLD + "1,072", 1.0),
        ("#### $1,072.00", GOLD + "1072", 1.0),
        ("#### 1,07", GOLD + "107", 0.0),
        ("#### -3", GOLD + "-3", 1.0),
        ("#### −3", GOLD + "-3", 1.0),
        ("#### -$3", GOLD + "-3", 1.0),
        ("#### 3", GOLD + "-3", 0.0),
        ("#### +3", GOLD + "3", 1.0),
        ("#### 50%", GOLD + "50", 1.0),
        ("#### .5", GOLD + "1/2", 1.0),
        ("#### 72.0", GOLD + "72", 1.0),
        ("#### 72.5", GOLD + "72", 0.0),
        ("#### **72**", GOLD + "72", 1.0),
        ("#### 72", 72, 1.0),
        ("#### 72", " $72 ", 1.0),
        ("#### 2", "12 apples for 2 people", None),  # which of them is meant is not said
        ("#### 72", None, None),
        ("#### 72", GOLD, None),
        ("#### 5", ["#### 4", "#### 5"], 1.0),
        ([{"role": "assistant", "content": "#### 72"}], GOLD + "72", 1.0),
    ],
)
def test_gsm8k_compares_what_stands_behind_the_mark(
    completion: Any, answer: Any, score: float | None
) -> None:
    assert one(gsm8k, completion, answer=answer) == score
