"""V01 to V06, V09, V14 to V16, V18 to V22: interventions act, alone and in company."""

import itertools

import pytest

from saccade_testing.public import asking, pictures

FULL = 24
SURE = 1e-5
BATCHED = 5e-3
"""How far an answer of this model may lie from itself in a batch of other shapes."""

COUNT = itertools.count()
"""Makes prompts that no cache has seen."""


def test_contrasts_act_at_temperature_0(demo):
    """V01: published code silently did not. From DAMO-NLP-SG/VCD#4, #8 and #37."""
    plain = demo.look(pictures.PALE, max_tokens=FULL)
    for entry in (
        {"method": "vcd", "alpha": 3, "noise_step": 900},
        {"method": "dola"},
        {"method": "pai_contrast", "gamma": 5},
    ):
        steered = demo.look(pictures.PALE, max_tokens=FULL, interventions=[entry])
        assert steered.distance(plain) > 1e-3


def test_strength_0_right_after_a_strong_one_is_plain(demo):
    """V02. From ZJU-REAL/EasySteer#20."""
    plain = demo.look(pictures.URL)
    for alpha, changes in ((4, True), (0, False), (4, True)):
        entry = {"method": "pai", "alpha": alpha}
        distance = demo.look(pictures.URL, interventions=[entry]).distance(plain)
        assert distance > 1e-4 if changes else distance < 1e-6
    assert demo.look(pictures.URL).distance(plain) < 1e-6


def test_the_cache_changes_nothing(demo):
    """V03. From hijohnnylin/neuronpedia#163."""
    entry = {"method": "head_scale", "gain": 1.5, "layers": [2, 3], "heads": "all"}
    question = f"{asking.QUESTION} {next(COUNT)}"
    first, again = (demo.look(pictures.URL, question, interventions=[entry]) for _ in range(2))
    assert first.distance(again) < 1e-4


def test_caches_carry_no_steering_to_others(demo):
    """V21: neither to a plain request, nor back, nor into the next turn. From
    hijohnnylin/neuronpedia#163, ZJU-REAL/EasySteer#20."""
    entry = {"method": "head_scale", "gain": 3, "layers": [1, 2, 3], "heads": "all"}
    question = f"Where is the red circle? {next(COUNT)}"
    steered = demo.look(pictures.PALE, question, interventions=[entry])
    plain = demo.look(pictures.PALE, question)
    assert steered.distance(plain) > 1e-3
    assert demo.look(pictures.PALE, question, interventions=[entry]).distance(steered) < 1e-4
    asked = asking.user(asking.image(pictures.PALE), asking.text(question))
    turn = [asked, asking.said(steered.text), asking.QUESTION]
    after = demo.see(*turn)
    # The same conversation where nothing was cached of it, told by another system message.
    assert demo.see(*turn).distance(after) < 1e-4
    assert demo.see(*turn, interventions=[]).distance(after) < 1e-4
    assert demo.see(*turn, interventions=[entry]).distance(after) > 1e-3


def test_every_decoded_token_is_edited_and_counted(demo):
    """V04. From AIRI-Institute/SAE-Reasoning#3, ndif-team/nnsight#560."""
    question = asking.user(asking.image(pictures.URL), asking.text(asking.QUESTION))
    body = asking.answered(demo.chat(question, interventions=[{"method": "pai", "alpha": 1}]))
    (receipt,) = body["interventions_applied"]
    assert receipt["status"] == "applied"
    assert receipt["rows"]["generated"] == body["usage"]["completion_tokens"] - 1
    assert receipt["rows"]["prompt"] >= 1


def test_the_last_query_head_is_not_a_key_head(demo):
    """V09. From jameswdelancey/llama3.c#8: heads count query heads."""
    heads, keys = demo.card["heads"], demo.card["kv_heads"]
    assert heads > keys
    last, other = (
        demo.look(
            pictures.URL,
            interventions=[{"method": "head_ablation", "layers": [3], "heads": [head]}],
        )
        for head in (heads - 1, keys - 1)
    )
    assert last.distance(other) > SURE


def test_a_repetition_penalty_acts_beside_dola_and_the_same_twice(demo):
    """V06. From huggingface/transformers#29619 and #29080."""
    entry = {"method": "dola", "relative_top": 0.0}
    one, two, without = (
        demo.look(pictures.PALE, interventions=[entry], max_tokens=FULL, repetition_penalty=penalty)
        for penalty in (1.3, 1.3, 1.0)
    )
    assert one.distance(two) < 1e-4
    assert one.text != without.text


CONTRASTS = {
    "vcd": {"method": "vcd", "beta": 0.0, "alpha": 0.5},
    "pai_contrast": {"method": "pai_contrast", "cutoff": 0.0},
}


@pytest.mark.parametrize("method", CONTRASTS)
def test_a_repetition_penalty_acts_under_a_contrast(demo, method):
    """V19: as it does without. From huggingface/transformers#29080, DAMO-NLP-SG/VCD#8."""
    fields = {"interventions": [CONTRASTS[method]], "max_tokens": FULL}
    none, some, much = (
        demo.look(pictures.PALE, repetition_penalty=penalty, **fields) for penalty in (1, 2, 5)
    )
    assert none.text != some.text or none.text != much.text
    words = [len(set(seen.text.split())) / len(seen.text.split()) for seen in (none, much)]
    assert words[1] > words[0], "fewer repetitions"


def receipts(body, methods):
    assert [item["method"] for item in body["interventions_applied"]] == methods
    assert {item["status"] for item in body["interventions_applied"]} <= {"applied", "no_effect"}


def test_every_method_runs_whole_streamed_and_twice(demo):
    """V14: each that needs no artifact. From shikiw/OPERA#43, InternLM/lmdeploy#2287."""
    listing = demo.http.get("/v1/interventions").json()["data"]
    wanted = {
        "look_at": {"regions": [{"box": [8, 8, 40, 40]}]},
        "pasta": {"highlight": ["the image"], "layers": [2, 3]},
        "head_scale": {"gain": 2, "layers": [3]},
        "head_ablation": {"layers": [3]},
    }
    entries = {
        item["id"]: {"method": item["id"], **wanted.get(item["id"], {})}
        for item in listing
        if item["supported"] and not item["needs_artifact"]
    }
    assert len(entries) > 12
    question = asking.user(asking.image(pictures.URL), asking.text(asking.QUESTION))

    def run(name):
        fields = {"interventions": [entries[name]], "max_tokens": 6}
        receipts(asking.answered(demo.chat(question, **fields)), [name])
        twice = asking.answered(demo.chat(question, **fields, n=2, temperature=1, seed=3))
        assert len(twice["choices"]) == 2
        receipts(twice, [name])
        last = [c for c in demo.stream(question, **fields).chunks if "interventions_applied" in c]
        assert len(last) == 1
        receipts(last[0], [name])

    for name in entries:
        run(name)


def test_a_seed_draws_the_same_under_an_intervention(demo):
    """V15. From DAMO-NLP-SG/VCD#24."""
    fields = {"temperature": 1.3, "max_tokens": FULL, "interventions": [{"method": "vcd"}]}
    first, again, *others = (
        demo.look(pictures.PALE, seed=seed, **fields) for seed in (1, 1, 2, 3, 4, 5)
    )
    assert first.text == again.text
    assert {seen.text for seen in others} - {first.text}


def test_an_image_of_an_earlier_turn_is_steered(demo):
    """V16. From huggingface/transformers#28032."""
    turns = [
        asking.user(asking.image(pictures.URL), asking.text(asking.QUESTION)),
        asking.said("There is a red circle and a blue square."),
        "Where is the red circle?",
    ]
    answer = demo.chat(*turns, logprobs=True, interventions=[{"method": "pai", "alpha": 4}])
    assert answer.json()["interventions_applied"][0]["status"] == "applied"
    assert asking.seen(answer).distance(demo.see(*turns)) > 1e-4


def test_sampling_fields_and_an_intervention_fit_in_one_request(demo):
    """V18. From huggingface/transformers#29619."""
    question = asking.user(asking.image(pictures.URL), asking.text(asking.QUESTION))
    answer = demo.chat(
        question,
        interventions=[{"method": "var"}],
        presence_penalty=0.5,
        frequency_penalty=0.5,
        repetition_penalty=1.1,
        stop=["zzz"],
        logprobs=True,
        top_logprobs=3,
        logit_bias={"9": -1},
    )
    receipts(asking.answered(answer), ["var"])
    assert asking.content(answer).startswith("There is a red circle")


def test_each_of_two_images_can_be_chosen(demo):
    """V20: image 0, image 1 and both are three edits, and each image is seen. From
    huggingface/transformers#28032, LLaVA-VL/LLaVA-NeXT#169."""
    other = pictures.data_url(pictures.encode(pictures.scene((200, 200, 60))))
    parts = [asking.image(pictures.URL), asking.image(other), asking.text(asking.QUESTION)]
    answers = [
        demo.see(
            asking.user(*parts),
            interventions=[{"method": "pai", "alpha": 2, "image_index": index}],
        )
        for index in (0, 1, None)
    ]
    for one, two in itertools.combinations(answers, 2):
        assert one.distance(two) > 1e-5
    swapped = demo.see(asking.user(parts[1], parts[0], parts[2]))
    assert swapped.distance(demo.see(asking.user(*parts))) > 1e-5


ENTRIES = [
    None,
    [{"method": "pai", "alpha": 2}],
    [{"method": "var", "move_fraction": 0.6}],
    [{"method": "head_scale", "gain": 0.5, "layers": [3]}],
    [{"method": "vcd"}],
]


def test_a_batch_of_many_kinds_answers_each_as_alone(demo):
    """V05: other lengths, images and methods beside it. From huggingface/transformers#28184,
    LLaVA-VL/LLaVA-NeXT#365, vllm-project/vllm#1761."""
    questions = [asking.QUESTION, f"{asking.QUESTION} " * 8]
    calls = [
        lambda url=url, question=question, entries=entries: demo.look(
            url, question, interventions=entries, max_tokens=8
        )
        for entries in ENTRIES
        for question, url in zip(questions, (pictures.URL, pictures.PALE), strict=True)
    ]
    alone = [call() for call in calls]
    for one, together in zip(alone, demo.at_once(calls), strict=True):
        assert together.distance(one) < BATCHED


def test_many_strengths_at_once_each_act_as_alone(demo):
    """V22. From ZJU-REAL/EasySteer#9, IBM/vLLM-Hook#29."""
    calls = [
        lambda alpha=alpha: demo.look(
            pictures.URL, interventions=[{"method": "pai", "alpha": alpha}], max_tokens=6
        )
        for alpha in (number / 10 for number in range(32))
    ]
    together = demo.at_once(calls)
    for at in range(0, 32, 8):
        assert together[at].distance(calls[at]()) < 1e-4
    assert together[0].distance(together[31]) > 1e-4
