import asyncio
import json
import time
from contextlib import AsyncExitStack, suppress

import pytest
from openai import AsyncOpenAI
from sim_client import asking, chat, connected, eventually, fast_worker, posted, stream

from loadtest.worker import SimWorker, WorkerSpec

CHAT = "/v1/chat/completions"


async def test_the_same_prompt_gets_the_same_answer_from_every_worker():
    async with fast_worker() as (_, one), fast_worker(decode_s_per_token=0.0001) as (_, other):
        for text in ("one", "two", "three"):
            assert (await chat(one, text))["choices"] == (await chat(other, text))["choices"]
        assert (await chat(one, "one"))["choices"] != (await chat(one, "two"))["choices"]


async def test_another_seed_gives_another_answer_whether_of_the_worker_or_of_the_request():
    async with fast_worker() as (_, one), fast_worker(seed=7) as (_, other):
        plain = (await chat(one))["choices"]
        assert (await chat(other))["choices"] != plain
        assert (await chat(one, seed=3))["choices"] != plain
        assert (await chat(one, seed=3))["choices"] == (await chat(one, seed=3))["choices"]


async def test_a_stream_says_what_the_whole_reply_says():
    async with fast_worker() as (_, client):
        whole = await chat(client, return_token_ids=True)
        chunks = await stream(client, CHAT, asking(return_token_ids=True))
        choices = [chunk["choices"][0] for chunk in chunks]
        assert (
            "".join(choice["delta"].get("content", "") for choice in choices)
            == whole["choices"][0]["message"]["content"]
        )
        assert [t for choice in choices for t in choice.get("token_ids", [])] == whole["choices"][0][
            "token_ids"
        ]
        assert choices[-1]["finish_reason"] == whole["choices"][0]["finish_reason"] == "stop"
        assert chunks[0]["prompt_token_ids"] == whole["prompt_token_ids"]


async def test_a_prompt_with_the_emitted_tokens_is_continued_as_if_never_cut():
    async with fast_worker() as (_, client):
        for text in ("one", "two", "three", "four"):
            whole = await chat(client, text, return_token_ids=True)
            emitted = whole["choices"][0]["token_ids"]
            for cut in (1, 4, len(emitted) - 1):
                body = {
                    "prompt": whole["prompt_token_ids"] + emitted[:cut],
                    "max_tokens": 1000,
                    "return_token_ids": True,
                }
                rest = (await client.post("/v1/completions", json=body)).json()["choices"][0]
                assert rest["token_ids"] == emitted[cut:]
                assert rest["finish_reason"] == "stop"


async def test_an_answer_begun_as_text_is_continued_as_if_never_cut():
    async with fast_worker() as (_, client):
        for text in ("one", "two", "three", "four"):
            emitted = [
                chunk["choices"][0]["delta"]["content"]
                for chunk in (await stream(client, CHAT, asking(text)))[1:]
            ]
            for cut in (1, 4, len(emitted) - 1):
                begun = {"role": "assistant", "content": "".join(emitted[:cut])}
                body = asking(text, continue_final_message=True, add_generation_prompt=False)
                body["messages"].append(begun)
                reply = (await client.post(CHAT, json=body)).json()
                assert reply["choices"][0]["message"]["content"] == "".join(emitted[cut:])


async def test_tokenize_gives_the_ids_that_the_reply_reports():
    async with fast_worker() as (_, client):
        whole = await chat(client, "Ça va? 潮 \U0001f30a", return_token_ids=True)
        body = {
            "model": "sim",
            "messages": asking("Ça va? 潮 \U0001f30a")["messages"],
            "return_token_strs": True,
        }
        tokens = (await client.post("/tokenize", json=body)).json()
        assert tokens["tokens"] == whole["prompt_token_ids"]
        assert tokens["count"] == whole["usage"]["prompt_tokens"] == len(tokens["token_strs"])
        text = (await client.post("/detokenize", json={"tokens": tokens["tokens"]})).json()["prompt"]
        assert text == "<s><|user|>Ça va? 潮 \U0001f30a</s><|assistant|>"


async def test_detokenized_ids_of_an_answer_are_its_text():
    async with fast_worker() as (_, client):
        choice = (await chat(client, return_token_ids=True))["choices"][0]
        text = (await client.post("/detokenize", json={"tokens": choice["token_ids"]})).json()["prompt"]
        assert text.removesuffix("</s>") == choice["message"]["content"]


async def test_max_tokens_min_tokens_and_ignore_eos_bound_the_answer():
    async with fast_worker() as (_, client):
        short = await chat(client, max_tokens=3)
        assert (short["choices"][0]["finish_reason"], short["usage"]["completion_tokens"]) == ("length", 3)
        natural = (await chat(client))["usage"]["completion_tokens"]
        assert (await chat(client, min_tokens=natural + 1))["usage"]["completion_tokens"] > natural
        assert (await chat(client, ignore_eos=True, max_tokens=700))["usage"]["completion_tokens"] == 700


async def test_natural_answers_are_neither_empty_nor_endless():
    async with fast_worker() as (_, client):
        lengths = [(await chat(client, f"question {n}"))["usage"]["completion_tokens"] for n in range(100)]
        assert min(lengths) >= 7
        assert 30 < sum(lengths) / 100 < 80


async def test_a_stop_string_across_tokens_ends_the_answer_before_it():
    async with fast_worker() as (_, client):
        text = (await chat(client))["choices"][0]["message"]["content"]
        words = text.split(" ")
        stop = f"{words[3]} {words[4][:2]}"
        choice = (await chat(client, stop=["no such thing", stop]))["choices"][0]
        assert choice["message"]["content"] == text[: text.index(stop)]
        assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", stop)
        streamed = await stream(client, CHAT, asking(stop=stop))
        assert "".join(c["choices"][0]["delta"]["content"] for c in streamed) == text[: text.index(stop)]


async def test_a_stop_string_that_never_comes_holds_nothing_back_in_the_end():
    async with fast_worker() as (_, client):
        plain = (await chat(client))["choices"][0]
        assert (await chat(client, stop="no such thing at all"))["choices"][0] == plain


async def test_n_choices_differ_and_the_prompt_is_counted_once():
    async with fast_worker() as (_, client):
        reply = await chat(client, n=3)
        assert [choice["index"] for choice in reply["choices"]] == [0, 1, 2]
        assert len({choice["message"]["content"] for choice in reply["choices"]}) == 3
        assert reply["usage"]["prompt_tokens"] == (await chat(client))["usage"]["prompt_tokens"]
        chunks = await stream(client, CHAT, asking(n=3, stream_options={"include_usage": True}))
        finished = [c["index"] for chunk in chunks for c in chunk["choices"] if c["finish_reason"]]
        assert sorted(finished) == [0, 1, 2]
        assert chunks[-1]["usage"]["completion_tokens"] == reply["usage"]["completion_tokens"]


async def test_a_list_of_prompts_gets_a_choice_for_each():
    async with fast_worker() as (_, client):
        body = {"prompt": ["alpha", "beta"], "max_tokens": 4}
        both = (await client.post("/v1/completions", json=body)).json()
        alone = (await client.post("/v1/completions", json={**body, "prompt": "beta"})).json()
        assert both["choices"][1]["text"] == alone["choices"][0]["text"]
        echoed = (await client.post("/v1/completions", json={**body, "prompt": "beta", "echo": True})).json()
        assert echoed["choices"][0]["text"] == "beta" + alone["choices"][0]["text"]


async def test_a_required_tool_is_called_with_arguments_that_fit_its_schema():
    parameters = {
        "type": "object",
        "properties": {"port": {"type": "string"}, "hours": {"type": "integer", "minimum": 1, "maximum": 9}},
        "required": ["port", "hours"],
    }
    tools = [{"type": "function", "function": {"name": "tide_table", "parameters": parameters}}]
    named = {"type": "function", "function": {"name": "tide_table"}}
    async with (
        fast_worker() as (worker, client),
        AsyncOpenAI(base_url=f"{worker.url}/v1", api_key="none") as openai,
    ):
        for choice, reason in (("required", "tool_calls"), (named, "stop")):
            whole = await chat(client, tools=tools, tool_choice=choice)
            call = whole["choices"][0]["message"]["tool_calls"][0]
            assert whole["choices"][0]["finish_reason"] == reason
            assert call["function"]["name"] == "tide_table"
            assert 1 <= json.loads(call["function"]["arguments"])["hours"] <= 9
            pieces = ""
            stream_of = await openai.chat.completions.create(
                **asking(), tools=tools, tool_choice=choice, stream=True
            )
            async for chunk in stream_of:
                for delta in chunk.choices[0].delta.tool_calls or []:
                    pieces += delta.function.arguments
            assert pieces == call["function"]["arguments"]


async def test_tool_choice_auto_calls_the_tool_when_told_to_and_never_with_none():
    tools = [
        {"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}}}}
    ]
    async with fast_worker() as (_, client):
        message = (await chat(client, "Please use the tool", tools=tools))["choices"][0]["message"]
        assert message["content"] is None
        assert message["tool_calls"][0]["function"]["arguments"] == "{}"
        assert (
            "tool_calls"
            not in (await chat(client, "Please use the tool", tools=tools, tool_choice="none"))["choices"][0][
                "message"
            ]
        )


async def test_response_format_gives_json_that_fits_the_schema():
    schema = {
        "type": "object",
        "properties": {
            "name": {"type": "string"},
            "depth": {"type": "number", "minimum": 2, "maximum": 3},
            "kind": {"enum": ["spring", "neap"]},
            "marks": {"type": "array", "items": {"$ref": "#/$defs/mark"}, "minItems": 3},
            "safe": {"type": "boolean"},
        },
        "$defs": {"mark": {"type": "integer", "minimum": 10, "maximum": 20}},
    }
    async with fast_worker() as (_, client):
        wanted = {"type": "json_schema", "json_schema": {"name": "tide", "schema": schema}}
        value = json.loads((await chat(client, response_format=wanted))["choices"][0]["message"]["content"])
        assert set(value) == set(schema["properties"])
        assert isinstance(value["name"], str)
        assert 2 <= value["depth"] <= 3
        assert value["kind"] in {"spring", "neap"}
        assert len(value["marks"]) == 3
        assert all(10 <= mark <= 20 for mark in value["marks"])
        assert isinstance(value["safe"], bool)
        free = await chat(client, response_format={"type": "json_object"})
        assert isinstance(json.loads(free["choices"][0]["message"]["content"]), dict)


async def test_an_image_counts_as_tokens_and_another_image_is_another_prompt():
    def seen(url: str):
        return [{"type": "text", "text": "What is this?"}, {"type": "image_url", "image_url": {"url": url}}]

    async with fast_worker() as (_, client):
        text = await chat(client, "What is this?")
        one, other = await chat(client, seen("data:one")), await chat(client, seen("data:two"))
        assert one["usage"]["prompt_tokens"] == text["usage"]["prompt_tokens"] + 64
        assert one["choices"] != other["choices"]


async def test_embeddings_are_answered_only_when_asked_for_at_the_start():
    async with fast_worker() as (_, client), fast_worker(embeddings=True) as (embedder, _):
        refused = await client.post("/v1/embeddings", json={"model": "sim", "input": "tide"})
        assert (refused.status_code, refused.json()) == (404, {"detail": "Not Found"})
        async with AsyncOpenAI(base_url=f"{embedder.url}/v1", api_key="none") as openai:
            reply = await openai.embeddings.create(model="sim", input=["tide", "moon", "tide"])
        assert reply.data[0].embedding == reply.data[2].embedding != reply.data[1].embedding
        assert sum(value**2 for value in reply.data[0].embedding) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("streaming", [True, False])
async def test_a_client_that_leaves_frees_its_slot_within_60_ms(*, streaming: bool):
    async with fast_worker(decode_s_per_token=0.01) as (worker, client):
        body = asking(ignore_eos=True, max_tokens=5000, stream=streaming)
        async with posted(worker, body) as (reader, writer):
            if streaming:
                await reader.readuntil(b"\n\n")
            else:
                await eventually(lambda: worker.engine.running)
            writer.transport.abort()
            left = time.monotonic()
            await eventually(lambda: not worker.engine.running)
            assert time.monotonic() - left < 0.06
        assert worker.stats.requests_aborted == 1
        metrics = (await client.get("/metrics")).text
        assert 'request_success_total{engine="0",finished_reason="abort",model_name="sim"} 1.0' in metrics


async def test_what_was_received_can_be_read_back_byte_for_byte():
    async with fast_worker() as (worker, client):
        body = b'{"model" : "sim", "messages":[{"role":"user","content":"\\u00e9 \xc3\xa9"}],  "x":1}'
        await client.post(CHAT, content=body, headers={"Content-Type": "application/json", "X-Own": "a"})
        assert worker.requests[-1].body == body
        seen = (await client.get("/sim/requests")).json()["requests"][-1]
        assert seen["body"].encode() == body
        assert ["X-Own", "a"] in seen["headers"]


async def test_stats_are_the_sum_of_the_usage_reported():
    async with fast_worker() as (_, client):
        replies = [await chat(client, f"{n} words to count, over and over and over again") for n in range(3)]
        replies.append(await chat(client, "0 words to count, over and over and over again"))
        stats = (await client.get("/sim/stats")).json()
        for field in ("prompt_tokens", "completion_tokens"):
            assert stats[field] == sum(reply["usage"][field] for reply in replies)
        cached = sum(reply["usage"]["prompt_tokens_details"]["cached_tokens"] for reply in replies)
        assert stats["cached_tokens"] == cached > 0
        assert (stats["requests_received"], stats["requests_finished"]) == (4, 4)


async def test_expect_100_continue_and_chunked_bodies_are_understood():
    async with fast_worker() as (worker, _), connected(worker) as (reader, writer):
        writer.write(
            b"POST /v1/completions HTTP/1.1\r\nHost: sim\r\nContent-Type: application/json\r\n"
            b"Expect: 100-continue\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(b'a\r\n{"prompt":\r\n7\r\n"tide"}\r\n0\r\n\r\n')
        assert (await reader.readline()) == b"HTTP/1.1 200 OK\r\n"


async def test_a_worker_that_ends_leaves_no_connection_open():
    async with AsyncExitStack() as stack:
        async with SimWorker(WorkerSpec()) as worker:
            reader, _ = await stack.enter_async_context(posted(worker, asking(stream=True)))
            await reader.readuntil(b"\n\n")
        with suppress(ConnectionResetError):
            await reader.read()
        assert reader.at_eof() or reader.exception() is not None
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", worker.port)


async def test_more_choices_than_vllm_takes_are_refused_before_any_is_made():
    async with fast_worker() as (worker, client):
        for n in (16_385, 10**30):
            refused = await client.post("/v1/chat/completions", json=asking(n=n))
            assert refused.status_code == 400
            assert f"n must be at most 16384, got {n}." in refused.json()["error"]["message"]
        assert worker.engine.generated_tokens == 0
