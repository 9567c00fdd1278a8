"""Instructor: pydantic models out of every mode that it has for servers of this kind."""

import sys

import instructor
from cases import API_KEY, BASE_URL, MODEL, run
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel, field_validator

ASK = [{"role": "user", "content": "Ann is 30 years old. Give JSON."}]


class Person(BaseModel):
    name: str
    age: int
    towns: list[str]


class Loose(BaseModel):
    """Any object is one: without a schema in the request the names are the model's."""

    name: object = None


def _client(mode):
    return instructor.from_openai(OpenAI(base_url=BASE_URL, api_key=API_KEY), mode=mode)


def _extract(mode, response_model=Person, **more):
    found = _client(mode).chat.completions.create(
        model=MODEL, messages=ASK, response_model=response_model, **more
    )
    assert isinstance(found, response_model)
    return found


def tools():
    _extract(instructor.Mode.TOOLS)


def tools_strict():
    _extract(instructor.Mode.TOOLS_STRICT)


def json_mode():
    _extract(instructor.Mode.JSON, Loose)


def json_schema():
    _extract(instructor.Mode.JSON_SCHEMA)


def markdown_json():
    """Its mode for servers without structured answers; the grammar is asked for beside it."""
    _extract(instructor.Mode.MD_JSON, extra_body={"guided_json": Person.model_json_schema()})


def from_a_name():
    client = instructor.from_provider(f"openai/{MODEL}", base_url=BASE_URL, api_key=API_KEY)
    found = client.create(messages=ASK, response_model=Person)
    assert isinstance(found, Person)


def with_the_completion():
    client = _client(instructor.Mode.TOOLS)
    found, completion = client.chat.completions.create_with_completion(
        model=MODEL, messages=ASK, response_model=Person
    )
    assert isinstance(found, Person)
    assert completion.usage.completion_tokens > 0


def _partial(mode):
    states = list(
        _client(mode).chat.completions.create_partial(
            model=MODEL, messages=ASK, response_model=Person
        )
    )
    assert len(states) > 2
    assert Person.model_validate(states[-1].model_dump())


def partial_tools():
    _partial(instructor.Mode.TOOLS)


def partial_json_schema():
    _partial(instructor.Mode.JSON_SCHEMA)


def several():
    """Its schema lets the list be left out, and other names in, which a random model does."""
    found = _client(instructor.Mode.TOOLS).chat.completions.create(
        model=MODEL, messages=ASK, response_model=list[Person]
    )
    assert all(isinstance(person, Person) for person in found)


async def asynchronous():
    client = instructor.from_openai(AsyncOpenAI(base_url=BASE_URL, api_key=API_KEY))
    found = await client.chat.completions.create(model=MODEL, messages=ASK, response_model=Person)
    assert isinstance(found, Person)


def _asked_again(mode):
    tries = []

    class Refused(BaseModel):
        name: str

        @field_validator("name")
        @classmethod
        def _refuse_the_first(cls, value):
            tries.append(value)
            if len(tries) == 1:
                raise ValueError("give the whole name")
            return value

    _extract(mode, Refused, max_retries=2)
    assert len(tries) == 2


def asked_again_with_tools():
    _asked_again(instructor.Mode.TOOLS)


def asked_again_with_a_schema():
    _asked_again(instructor.Mode.JSON_SCHEMA)


if __name__ == "__main__":
    run(sys.modules[__name__])
