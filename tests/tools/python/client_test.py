#!/usr/bin/env python3
"""The Python client, and one generated from the public proto, with a real gateway. Skipped where
Python has no gRPC. Usage: client_test.py PACKAGE_FOLDER BIN_FOLDER"""
import asyncio
import dataclasses
import importlib.util
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import unittest

SKIPPED = 77  # CTest's word for it
if importlib.util.find_spec("grpc") is None or importlib.util.find_spec("google.protobuf") is None:
    print(f"skipped: {sys.executable} has no gRPC (Debian: python3-grpcio, python3-protobuf)")
    sys.exit(SKIPPED)
PACKAGE, BIN = sys.argv[1], pathlib.Path(sys.argv[2])
sys.path.insert(0, PACKAGE)
import grpc  # noqa: E402
import tandem  # noqa: E402
from tandem import GenerateRequest, RetryPolicy, Sampling, TandemError, messages  # noqa: E402
from tandem.resume import Answer, Retries  # noqa: E402
from tandem.wire import METHODS, read  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parents[3]
LIMIT_S = 60


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Gateway:
    """All in one process, always at the same port."""

    def __init__(self, *flags):
        self.address = f"127.0.0.1:{free_port()}"
        self.flags = flags
        self.start()

    def start(self):
        self.process = subprocess.Popen(
            [str(BIN / "tandem-gateway"), "--model", str(ROOT / "tests/golden/tiny"), "--dtype",
             "f32", "--threads", "1", "--listen", self.address, *self.flags],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def end(self, how=signal.SIGKILL):
        self.process.send_signal(how)
        self.process.wait()


def long_request(tokens=1500, seed=7, **fields):
    return GenerateRequest(token_ids=[5, 6, 7, 8], max_tokens=tokens, ignore_eos=True,
                           sampling=Sampling(temperature=0.8, seed=seed), **fields)


def wait_until(condition):
    end = time.monotonic() + LIMIT_S
    while not condition():
        if time.monotonic() > end:
            raise AssertionError("it did not come to that in time")
        time.sleep(0.005)


def answers_class(method):
    """Of the messages that it answers, from the bound method that reads them."""
    return type(METHODS[method].deserialize(b""))


class MessagesTest(unittest.TestCase):
    def test_dataclasses_have_the_fields_of_the_messages(self):
        pool = METHODS["Generate"].request.DESCRIPTOR.file.pool
        answer = "GenerateResponse."
        other_names = {"Started": answer + "Started", "Chunk": answer + "Chunk",
                       "Finished": answer + "Finished",
                       "TopLogProbs": answer + "TopLogProbs", "Score": "ScoreResponse",
                       "ScoreRow": "ScoreResponse.Row", "Model": "GetModelResponse",
                       "Status": "GetStatusResponse", "Holders": "PlacementStatus.Holders"}
        found = {name: cls for name, cls in vars(messages).items()
                 if dataclasses.is_dataclass(cls) and cls not in (tandem.Completion, tandem.Choice)}
        self.assertLessEqual(set(other_names), set(found))
        for name, cls in found.items():
            with self.subTest(name):
                message = pool.FindMessageTypeByName("tandem.v1." + other_names.get(name, name))
                self.assertEqual({field.name for field in dataclasses.fields(cls)},
                                 set(message.fields_by_name))

    def test_enums_have_the_values_of_the_messages(self):
        pool = METHODS["Generate"].request.DESCRIPTOR.file.pool
        for cls, name, prefix in (
                (tandem.FinishReason, "GenerateResponse.FinishReason", "FINISH_REASON_"),
                (tandem.ScorePath, "ScorePath", "SCORE_PATH_")):
            values = pool.FindEnumTypeByName("tandem.v1." + name).values
            self.assertEqual([(prefix + value.name, value.value) for value in cls],
                             [(value.name, value.number) for value in values])

    def test_every_kind_of_field_is_read(self):
        proto = answers_class("GetStatus")(
            state="serving", workers=[{"id": 3, "counters": {"steps": 5}, "build": "1.2",
                                         "digest": "d"}], refused=["e:1"],
            default_sampling={"top_k": 0}, target_counter=2,
            placement={"counter": 1, "num_layers": 1, "num_experts": 2,
                       "holders": [{"worker_ids": [3, 4]}, {"worker_ids": [4]}]})
        status = read(tandem.Status, proto)
        self.assertEqual(status, tandem.Status(
            "serving", "", "", [tandem.WorkerStatus(3, "", "", "", 0.0, {"steps": 5}, "", "1.2",
                                                          "d", "")],
            0, 0, Sampling(top_k=0), ["e:1"], 2, tandem.PlacementStatus(
                1, 1, 2, [tandem.Holders((3, 4)), tandem.Holders((4,))])))
        self.assertIs(type(status.workers[0].counters), dict)
        proto.ClearField("default_sampling")
        self.assertIsNone(read(tandem.Status, proto).default_sampling)
        finished = read(tandem.Finished, answers_class("Generate")(finished={"reason": 2}).finished)
        self.assertIs(finished.reason, tandem.FinishReason.LENGTH)
        chunk = read(tandem.Chunk, answers_class("Generate")(chunk={"token_ids": [1, 2]}).chunk)
        self.assertEqual(chunk, tandem.Chunk("", (1, 2), ()))


class ResumeTest(unittest.TestCase):
    def event(self, **fields):
        return answers_class("Generate")(**fields)

    def answer(self):
        answer = Answer(GenerateRequest(text="x", max_tokens=3))
        self.assertFalse(answer.next_attempt().sampling.HasField("seed"))
        self.assertIsNone(answer.take(self.event(started={"seed": 11})))
        answer.take(self.event(chunk={"text": "ab", "token_ids": [1, 2], "log_probs": [-1, -2]}))
        return answer

    def test_what_was_delivered_is_skipped(self):
        answer = self.answer()
        self.assertEqual(answer.next_attempt().sampling.seed, 11)
        answer.take(self.event(started={"seed": 11}))
        self.assertIsNone(answer.take(self.event(
            chunk={"text": "a", "token_ids": [1], "log_probs": [-1]})))
        fresh = answer.take(self.event(
            chunk={"text": "bc", "token_ids": [2, 3], "log_probs": [-2, -3]}))
        self.assertEqual(fresh, tandem.Chunk("c", (3,), (-3,)))
        self.assertEqual(answer.take(self.event(finished={"text": "d"})),
                         tandem.Chunk("d", (), ()))
        choice = answer.choices[0]
        self.assertEqual((choice.text, choice.token_ids), ("abcd", [1, 2, 3]))

    def test_choices_go_on_each_where_it_was(self):
        def chunk(choice, text, token):
            return self.event(chunk={"choice": choice, "text": text, "token_ids": [token],
                                     "log_probs": [-token]})
        answer = Answer(GenerateRequest(text="x", n=2))
        self.assertEqual(answer.next_attempt().n, 2)
        answer.take(self.event(started={"seed": 11}))
        for event in (chunk(0, "a", 1), chunk(1, "x", 5), chunk(1, "y", 6)):
            answer.take(event)
        answer.take(self.event(finished={"choice": 1}))
        answer.next_attempt()
        answer.take(self.event(started={"seed": 11}))
        fresh = [answer.take(event) for event in (
            chunk(1, "x", 5), chunk(0, "a", 1), chunk(0, "b", 2), chunk(1, "y", 6),
            self.event(finished={"choice": 0}))]
        self.assertEqual(fresh, [None, None, tandem.Chunk("b", (2,), (-2,)), None, None])
        self.assertFalse(answer.all_finished and answer.choices[0].finished is None)
        answer.take(self.event(finished={"choice": 1}))
        whole = answer.completion(1)
        self.assertEqual([choice.text for choice in whole.choices], ["ab", "xy"])
        self.assertEqual(whole.text, "ab")
        answer.next_attempt()
        with self.assertRaises(tandem.ChangedAnswerError):
            answer.take(chunk(1, "x", 9))

    def test_another_answer_is_an_error(self):
        for changed in ({"started": {"seed": 12}},
                        {"chunk": {"text": "a", "token_ids": [9], "log_probs": [-1]}},
                        {"chunk": {"text": "a", "token_ids": [1], "log_probs": [-1.5]}},
                        {"chunk": {"text": "x", "token_ids": [1], "log_probs": [-1]}},
                        {"finished": {}}):
            answer = self.answer()
            answer.next_attempt()
            with self.assertRaises(tandem.ChangedAnswerError):
                answer.take(self.event(**changed))

    def test_retries_end_without_progress_and_with_the_deadline(self):
        unavailable = TandemError(grpc.StatusCode.UNAVAILABLE, "away")
        retries = Retries(RetryPolicy(give_up_s=10, first_wait_s=1, longest_wait_s=4), 0, 100)
        self.assertEqual([retries.on_error(unavailable, t) for t in (0, 1, 3, 5)], [1, 2, 4, 4])
        with self.assertRaises(TandemError) as raised:
            retries.on_error(unavailable, 9)
        self.assertIs(raised.exception, unavailable)
        retries.on_progress(98.5)
        self.assertEqual(retries.on_error(unavailable, 98.5), 1)
        with self.assertRaises(TandemError) as raised:
            retries.on_error(unavailable, 98.5)
        self.assertEqual(raised.exception.code, grpc.StatusCode.DEADLINE_EXCEEDED)
        with self.assertRaises(TandemError) as raised:
            retries.on_error(TandemError(grpc.StatusCode.INTERNAL, "x"), 0)
        self.assertEqual(raised.exception.code, grpc.StatusCode.INTERNAL)


class TlsTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        cls.dir = pathlib.Path(cls.folder.name)
        subprocess.run([str(ROOT / "scripts/make-certificates"), str(cls.dir)], check=True)
        cls.tokens = cls.dir / "tokens"
        cls.tokens.write_text("# ours\nalice 0123456789abcdef\n")
        cls.gateway = Gateway("--public-cert", str(cls.dir / "gateway.pem"), "--public-key",
                              str(cls.dir / "gateway.key"), "--client-ca", str(cls.dir / "ca.pem"),
                              "--client-tokens", str(cls.tokens))

    @classmethod
    def tearDownClass(cls):
        cls.gateway.end()
        cls.folder.cleanup()

    def tls(self, **fields):
        return tandem.Tls(**{"ca": self.dir / "ca.pem", "cert": self.dir / "client.pem",
                             "key": self.dir / "client.key", "token_file": self.tokens, **fields})

    def test_encrypted_with_certificate_and_token(self):
        with tandem.Client(self.gateway.address, tls=self.tls()) as client:
            wait_until(lambda: client.get_status(timeout_s=LIMIT_S).state == "serving")
            self.assertEqual(len(client.complete(long_request(4)).token_ids), 4)

        async def ask():
            async with tandem.AsyncClient(self.gateway.address, tls=self.tls()) as client:
                return await client.complete(long_request(4))
        self.assertEqual(len(asyncio.run(ask()).token_ids), 4)

    def test_what_is_wrong_is_said(self):
        other = self.dir / "other"
        other.write_text("0123456789abcdeg\n")
        no_retries = RetryPolicy(give_up_s=0)
        for tls, code, words in (
                (self.tls(token_file=None), "UNAUTHENTICATED", "a token is required"),
                (self.tls(token_file=other), "UNAUTHENTICATED", "not one of this server's"),
                (self.tls(cert=None, key=None), "UNAUTHENTICATED", "certificate is required"),
                (self.tls(server_name="elsewhere.example"), "UNAVAILABLE", ""),
                (None, "UNAVAILABLE", "")):
            with tandem.Client(self.gateway.address, tls=tls, retry=no_retries) as client:
                with self.assertRaises(TandemError) as raised:
                    client.get_model(timeout_s=LIMIT_S)
            self.assertEqual(raised.exception.code.name, code)
            self.assertIn(words, raised.exception.message)

    def test_files_that_are_none_are_found_at_once(self):
        with self.assertRaises(OSError):
            tandem.Client(tls=self.tls(ca=self.dir / "none"))
        with self.assertRaises(OSError):
            tandem.Client(tls=self.tls(token_file=self.dir / "none"))
        with self.assertRaises(ValueError):
            tandem.Client(tls=self.tls(key=None))


class GatewayTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.gateway = Gateway()
        cls.client = tandem.Client(cls.gateway.address)
        wait_until(lambda: cls.client.get_status().state == "serving")

    @classmethod
    def tearDownClass(cls):
        cls.client.close()
        cls.gateway.end()

    def live(self):
        return self.client.get_status().workers[0].counters["requests_live"]

    def test_streams(self):
        stream = self.client.generate(GenerateRequest(text="one two", max_tokens=20,
                                                      ignore_eos=True))
        chunks = list(stream)
        whole = self.client.complete(GenerateRequest(
            text="one two", max_tokens=20, ignore_eos=True,
            sampling=Sampling(seed=stream.started.seed)))
        self.assertEqual(whole.text, "".join(chunk.text for chunk in chunks))
        self.assertEqual(whole.token_ids, [i for chunk in chunks for i in chunk.token_ids])
        self.assertEqual(len(whole.log_probs), 20)
        self.assertEqual(whole.finished.completion_tokens, 20)
        self.assertEqual(stream.finished.reason, tandem.FinishReason.LENGTH)
        self.assertEqual(stream.retried, [])

    def test_sampling_fields(self):
        bias = {30: 100.0, 31: 99.0}
        request = GenerateRequest(
            text="one two", max_tokens=6, ignore_eos=True, min_tokens=2, top_logprobs=3,
            sampling=Sampling(temperature=0, min_p=0.1, repetition_penalty=1.1,
                              frequency_penalty=0.5, presence_penalty=2, logit_bias=bias))
        whole = self.client.complete(request)
        self.assertEqual(set(whole.token_ids), {30, 31})
        self.assertEqual(len(whole.top_logprobs), 6)
        for top in whole.top_logprobs:
            self.assertEqual(len(set(top.token_ids)), 3)
            self.assertEqual(sorted(top.log_probs, reverse=True), list(top.log_probs))
        plain = self.client.complete(dataclasses.replace(request, sampling=Sampling(temperature=0),
                                                         top_logprobs=1))
        self.assertEqual([(top.token_ids[0], top.log_probs[0]) for top in plain.top_logprobs],
                         list(zip(plain.token_ids, plain.log_probs)))
        with self.assertRaises(TandemError) as raised:
            self.client.complete(dataclasses.replace(request, top_logprobs=21))
        self.assertIn("top_logprobs is 21", raised.exception.message)

    def test_choices(self):
        one = self.client.complete(long_request(20))
        whole = self.client.complete(dataclasses.replace(long_request(20), n=4))
        self.assertEqual(len(whole.choices), 4)
        self.assertEqual((whole.token_ids, whole.log_probs), (one.token_ids, one.log_probs))
        self.assertEqual([choice.finished.choice for choice in whole.choices], [0, 1, 2, 3])
        self.assertEqual(len({tuple(choice.token_ids) for choice in whole.choices}), 4)
        for choice in whole.choices:
            self.assertEqual(choice.finished.completion_tokens, 20)
        stream = self.client.generate(dataclasses.replace(long_request(20), n=4))
        ids = [[] for _ in range(4)]
        for chunk in stream:
            ids[chunk.choice].extend(chunk.token_ids)
        self.assertEqual(ids, [choice.token_ids for choice in whole.choices])
        self.assertEqual([finished.choice for finished in stream.finished_choices], [0, 1, 2, 3])

    def test_all_calls(self):
        ids = self.client.tokenize("one two")
        self.assertEqual(self.client.detokenize(ids), "one two")
        score = self.client.score(tandem.ScoreRequest(token_ids=ids, logits=True, positions=[0]))
        model = self.client.get_model()
        self.assertEqual(len(score.rows[0].logits), 4 * model.vocab_size)
        self.assertEqual(score.prompt_tokens, len(ids))
        self.assertIsNone(model.default_sampling.seed)
        status = self.client.get_status()
        self.assertEqual(status.workers[0].kind, "gateway")
        self.assertEqual(status.default_sampling, model.default_sampling)

    def test_a_refusal_has_code_and_sentence(self):
        with self.assertRaises(TandemError) as raised:
            self.client.complete(GenerateRequest(text="x", sampling=Sampling(top_p=2)))
        self.assertEqual(raised.exception.code, grpc.StatusCode.INVALID_ARGUMENT)
        self.assertIn("sampling.top_p is 2", raised.exception.message)
        with self.assertRaisesRegex(ValueError, "exactly one of text, token_ids, chat"):
            self.client.complete(GenerateRequest(text="x", token_ids=[1]))

    def test_cancel_ends_the_work(self):
        with self.client.generate(long_request()) as stream:
            next(stream)
        with self.assertRaises(TandemError) as raised:
            list(stream)
        self.assertEqual(raised.exception.code, grpc.StatusCode.CANCELLED)
        wait_until(lambda: self.live() == 0)

    def test_deadline(self):
        with self.assertRaises(TandemError) as raised:
            self.client.complete(long_request(), timeout_s=0.05)
        self.assertEqual(raised.exception.code, grpc.StatusCode.DEADLINE_EXCEEDED)

    def test_asyncio(self):
        async def talk():
            async with tandem.AsyncClient(self.gateway.address) as client:
                a, b = await asyncio.gather(client.complete(long_request(20)),
                                            client.complete(long_request(20)))
                self.assertEqual((a.token_ids, a.log_probs), (b.token_ids, b.log_probs))
                with self.assertRaises(TandemError) as raised:
                    await client.complete(GenerateRequest(text="x", sampling=Sampling(top_p=2)))
                self.assertEqual(raised.exception.code, grpc.StatusCode.INVALID_ARGUMENT)
                stream = client.generate(long_request())
                async for _ in stream:
                    stream.cancel()
                    break
                with self.assertRaises(TandemError) as raised:
                    await stream.result()
                self.assertEqual(raised.exception.code, grpc.StatusCode.CANCELLED)
                with self.assertRaises(asyncio.TimeoutError):
                    await asyncio.wait_for(client.complete(long_request()), 0.05)
                with self.assertRaises(TandemError) as raised:
                    await client.complete(long_request(), timeout_s=0.05)
                self.assertEqual(raised.exception.code, grpc.StatusCode.DEADLINE_EXCEEDED)
                ids = await client.tokenize("one two")
                self.assertEqual(await client.detokenize(ids), "one two")
                score = await client.score(tandem.ScoreRequest(token_ids=ids))
                self.assertEqual(len(score.rows), len(ids))
        asyncio.run(asyncio.wait_for(talk(), LIMIT_S))
        wait_until(lambda: self.live() == 0)

    def test_generated_client(self):
        """What a stranger makes of the proto, without this package."""
        plugin = shutil.which("grpc_python_plugin")
        if not shutil.which("protoc") or not plugin:
            self.skipTest("no protobuf-compiler-grpc")
        with tempfile.TemporaryDirectory() as folder:
            subprocess.run(["protoc", f"--proto_path={ROOT / 'proto'}", f"--python_out={folder}",
                            f"--grpc_python_out={folder}",
                            f"--plugin=protoc-gen-grpc_python={plugin}", "inference.proto"],
                           check=True)
            sys.path.insert(0, folder)
            import inference_pb2
            import inference_pb2_grpc
        with grpc.insecure_channel(self.gateway.address) as channel:
            server = inference_pb2_grpc.InferenceStub(channel)
            request = inference_pb2.GenerateRequest(text="one two", max_tokens=20,
                                                    ignore_eos=True, sampling={"seed": 3})
            call = server.Generate(request, timeout=LIMIT_S)
            events = list(call)
            self.assertEqual(events[0].WhichOneof("event"), "started")
            self.assertEqual(events[-1].finished.completion_tokens, 20)
            self.assertEqual(call.code(), grpc.StatusCode.OK)
            self.assertEqual(self.client.complete(GenerateRequest(
                text="one two", max_tokens=20, ignore_eos=True,
                sampling=Sampling(seed=3))).token_ids,
                [i for event in events for i in event.chunk.token_ids])
            request.max_tokens = 1500
            call = server.Generate(request)
            next(call)
            call.cancel()
            with self.assertRaises(grpc.RpcError):
                list(call)
            self.assertEqual(call.code(), grpc.StatusCode.CANCELLED)
            call = server.Generate(request, timeout=0.05)
            with self.assertRaises(grpc.RpcError):
                list(call)
            self.assertEqual(call.code(), grpc.StatusCode.DEADLINE_EXCEEDED)
            request.sampling.top_p = 2
            call = server.Generate(request)
            with self.assertRaises(grpc.RpcError):
                list(call)
            self.assertEqual(call.code(), grpc.StatusCode.INVALID_ARGUMENT)
            self.assertIsNotNone(call.trailing_metadata())
        wait_until(lambda: self.live() == 0)

    def test_a_restart_costs_only_time(self):
        whole = self.client.complete(long_request())
        stream = self.client.generate(long_request())
        first = next(stream)
        self.gateway.end()
        back = threading.Timer(0.3, self.gateway.start)
        back.start()
        answer = stream.result()
        back.join()
        self.assertGreater(answer.retries, 0)
        self.assertEqual(answer.token_ids[:len(first.token_ids)], list(first.token_ids))
        self.assertEqual((answer.text, answer.token_ids, answer.log_probs),
                         (whole.text, whole.token_ids, whole.log_probs))

        async def over_a_restart():
            async with tandem.AsyncClient(self.gateway.address) as client:
                stream = client.generate(long_request())
                await stream.__anext__()
                self.gateway.end()
                asyncio.get_running_loop().call_later(0.3, self.gateway.start)
                return await stream.result()
        answer = asyncio.run(asyncio.wait_for(over_a_restart(), LIMIT_S))
        self.assertGreater(answer.retries, 0)
        self.assertEqual((answer.token_ids, answer.log_probs), (whole.token_ids, whole.log_probs))

    def test_without_retries_a_gateway_that_is_away_is_unavailable_at_once(self):
        start = time.monotonic()
        with tandem.Client(f"127.0.0.1:{free_port()}",
                           retry=RetryPolicy(give_up_s=0)) as client:
            with self.assertRaises(TandemError) as raised:
                client.complete(long_request())
        self.assertEqual(raised.exception.code, grpc.StatusCode.UNAVAILABLE)
        self.assertLess(time.monotonic() - start, 10)

    def test_cancel_ends_the_wait_for_a_gateway_that_is_away(self):
        address, retry = f"127.0.0.1:{free_port()}", RetryPolicy(first_wait_s=LIMIT_S / 2)
        with tandem.Client(address, retry=retry) as client:
            stream = client.generate(long_request())
            cancel = threading.Timer(0.3, stream.cancel)
            cancel.start()
            with self.assertRaises(TandemError) as raised:
                stream.result()
            cancel.join()
        self.assertEqual(raised.exception.message, "cancelled by its caller")

        async def cancelled():
            async with tandem.AsyncClient(address, retry=retry) as client:
                stream = client.generate(long_request())
                asyncio.get_running_loop().call_later(0.3, stream.cancel)
                await stream.result()
        with self.assertRaises(TandemError) as raised:
            asyncio.run(asyncio.wait_for(cancelled(), LIMIT_S / 3))
        self.assertEqual(raised.exception.message, "cancelled by its caller")
        self.assertEqual(raised.exception.__cause__.code, grpc.StatusCode.UNAVAILABLE)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
