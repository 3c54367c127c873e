// Bad input of every kind gets its code and one sentence that names what is wrong, and the same
// server goes on to answer.

#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <string>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "nlohmann/json.hpp"
#include "tests/integration/deployment.h"

namespace tandem::test {
namespace {

using grpc::StatusCode;
using Json = nlohmann::json;
using testing::HasSubstr;

constexpr absl::Duration kExitLimit = absl::Seconds(30);

v1::GenerateRequest GoodRequest() {
  v1::GenerateRequest request;
  request.set_text("one two three");
  request.set_max_tokens(4);
  request.set_ignore_eos(true);
  request.mutable_sampling()->set_temperature(0);
  return request;
}

struct BadRequest {
  const char* name;
  std::function<void(v1::GenerateRequest&)> spoil;
  StatusCode code;
  const char* sentence;
};

const BadRequest kBadRequests[] = {
    {"empty text", [](auto& r) { r.set_text(""); }, StatusCode::INVALID_ARGUMENT, "text is empty"},
    {"no prompt", [](auto& r) { r.clear_prompt(); }, StatusCode::INVALID_ARGUMENT,
     "prompt is missing"},
    {"no ids", [](auto& r) { r.mutable_token_ids(); }, StatusCode::INVALID_ARGUMENT,
     "prompt has no tokens"},
    {"id beyond the vocabulary", [](auto& r) { r.mutable_token_ids()->add_ids(1040); },
     StatusCode::INVALID_ARGUMENT, "token_ids[0] is 1040"},
    {"negative id", [](auto& r) { r.mutable_token_ids()->add_ids(-1); },
     StatusCode::INVALID_ARGUMENT, "token_ids[0] is -1"},
    {"prompt over the context",
     [](auto& r) {
       for (int i = 0; i < 163841; ++i) r.mutable_token_ids()->add_ids(1);
     },
     StatusCode::INVALID_ARGUMENT, "163841 tokens"},
    {"prompt and answer over the context", [](auto& r) { r.set_max_tokens(163840); },
     StatusCode::INVALID_ARGUMENT, "max_tokens is 163840"},
    {"larger than the cache",
     [](auto& r) {
       for (int i = 0; i < 70000; ++i) r.mutable_token_ids()->add_ids(1);
     },
     StatusCode::RESOURCE_EXHAUSTED, "pages"},
    {"no tokens wanted", [](auto& r) { r.set_max_tokens(0); }, StatusCode::INVALID_ARGUMENT,
     "max_tokens is 0"},
    {"negative temperature", [](auto& r) { r.mutable_sampling()->set_temperature(-1); },
     StatusCode::INVALID_ARGUMENT, "temperature is -1"},
    {"temperature not a number", [](auto& r) { r.mutable_sampling()->set_temperature(NAN); },
     StatusCode::INVALID_ARGUMENT, "temperature is nan"},
    {"top_p of zero", [](auto& r) { r.mutable_sampling()->set_top_p(0); },
     StatusCode::INVALID_ARGUMENT, "top_p is 0"},
    {"min_p above 1", [](auto& r) { r.mutable_sampling()->set_min_p(1.5f); },
     StatusCode::INVALID_ARGUMENT, "sampling.min_p is 1.5, but must be 0 to 1"},
    {"min_p not a number", [](auto& r) { r.mutable_sampling()->set_min_p(NAN); },
     StatusCode::INVALID_ARGUMENT, "min_p is nan"},
    {"repetition_penalty of zero", [](auto& r) { r.mutable_sampling()->set_repetition_penalty(0); },
     StatusCode::INVALID_ARGUMENT, "sampling.repetition_penalty is 0, but must be 0.01 to 100"},
    {"frequency_penalty out of range",
     [](auto& r) { r.mutable_sampling()->set_frequency_penalty(-2.5f); },
     StatusCode::INVALID_ARGUMENT, "sampling.frequency_penalty is -2.5, but must be -2 to 2"},
    {"presence_penalty not a number",
     [](auto& r) { r.mutable_sampling()->set_presence_penalty(NAN); }, StatusCode::INVALID_ARGUMENT,
     "presence_penalty is nan"},
    {"bias out of range",
     [](auto& r) { (*r.mutable_sampling()->mutable_logit_bias())[5] = -100.5f; },
     StatusCode::INVALID_ARGUMENT, "sampling.logit_bias[5] is -100.5, but must be -100 to 100"},
    {"bias not a number", [](auto& r) { (*r.mutable_sampling()->mutable_logit_bias())[5] = NAN; },
     StatusCode::INVALID_ARGUMENT, "logit_bias[5] is nan"},
    {"bias of an id beyond the vocabulary",
     [](auto& r) { (*r.mutable_sampling()->mutable_logit_bias())[1040] = 1; },
     StatusCode::INVALID_ARGUMENT, "sampling.logit_bias has id 1040"},
    {"too many biases",
     [](auto& r) {
       for (int i = 0; i < 1025; ++i) (*r.mutable_sampling()->mutable_logit_bias())[i] = 1;
     },
     StatusCode::INVALID_ARGUMENT, "sampling.logit_bias has 1025 ids, but at most 1024"},
    {"min_tokens above max_tokens", [](auto& r) { r.set_min_tokens(5); },
     StatusCode::INVALID_ARGUMENT, "min_tokens is 5, but max_tokens is 4"},
    {"min_tokens above what an answer has by itself",
     [](auto& r) {
       r.clear_max_tokens();
       r.set_min_tokens(1025);
     },
     StatusCode::INVALID_ARGUMENT,
     "min_tokens is 1025, but max_tokens is 1024 where it is not set"},
    {"echo of a chat",
     [](auto& r) {
       r.set_echo(true);
       r.mutable_chat()->add_messages()->set_role("user");
     },
     StatusCode::INVALID_ARGUMENT, "echo is set, but it goes with text and token_ids only"},
    {"too many of the most probable", [](auto& r) { r.set_top_logprobs(21); },
     StatusCode::INVALID_ARGUMENT, "top_logprobs is 21, but must be 0 to 20"},
    {"empty stop string", [](auto& r) { r.add_stop(""); }, StatusCode::INVALID_ARGUMENT, "stop"},
    {"too many stop strings",
     [](auto& r) {
       for (int i = 0; i < 17; ++i) r.add_stop("x");
     },
     StatusCode::INVALID_ARGUMENT, "17 strings"},
    {"unknown model", [](auto& r) { r.set_model("gpt"); }, StatusCode::NOT_FOUND,
     "\"gpt\" is not served"},
    {"an answer that would not fit into a header",
     [](auto& r) { r.set_model(std::string(100'000, 'x')); }, StatusCode::NOT_FOUND,
     "model \"xxxxx"},
    {"invalid UTF-8", [](auto& r) { r.set_text("ab\xff"); }, StatusCode::INVALID_ARGUMENT, "UTF-8"},
    {"chat without messages", [](auto& r) { r.mutable_chat(); }, StatusCode::INVALID_ARGUMENT,
     "message"},
    {"more messages than the context has tokens",
     [](auto& r) {
       for (int i = 0; i < 163841; ++i) r.mutable_chat()->add_messages()->set_role("user");
     },
     StatusCode::INVALID_ARGUMENT, "163841 messages"},
    {"unknown role",
     [](auto& r) {
       auto* message = r.mutable_chat()->add_messages();
       message->set_role("robot");
       message->set_content("x");
     },
     StatusCode::INVALID_ARGUMENT, "robot"},
};

// Sends bytes that are no HTTP/2 to a port and reads until the peer closes.
void SendGarbage(const std::string& address) {
  const std::vector<std::string> parts = absl::StrSplit(address, ':');
  int port = 0;
  ASSERT_TRUE(absl::SimpleAtoi(parts[1], &port));
  const int fd = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in to{};
  to.sin_family = AF_INET;
  to.sin_port = htons(static_cast<uint16_t>(port));
  to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  ASSERT_EQ(connect(fd, reinterpret_cast<sockaddr*>(&to), sizeof(to)), 0);
  const timeval limit = {5, 0};
  setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
  std::string garbage(4096, '\0');
  for (size_t i = 0; i < garbage.size(); ++i) garbage[i] = static_cast<char>(i * 131 + 7);
  EXPECT_GT(send(fd, garbage.data(), garbage.size(), MSG_NOSIGNAL), 0);
  char buffer[256];
  while (recv(fd, buffer, sizeof(buffer), 0) > 0) {
  }
  close(fd);
}

TEST(BadInputTest, EveryBadRequestIsExplainedAndTheServerGoesOn) {
  DeploymentOptions options;
  options.attention_workers = 1;
  options.expert_workers = 1;
  Deployment deployment(options);
  const Answer good = Ask(deployment.stub(), GoodRequest());
  ASSERT_TRUE(good.status.ok()) << good.status.error_message();
  for (const BadRequest& bad : kBadRequests) {
    v1::GenerateRequest request = GoodRequest();
    bad.spoil(request);
    const Answer answer = Ask(deployment.stub(), request, absl::Seconds(20));
    EXPECT_EQ(answer.status.error_code(), bad.code)
        << bad.name << ": " << answer.status.error_message();
    EXPECT_THAT(answer.status.error_message(), HasSubstr(bad.sentence)) << bad.name;
    EXPECT_EQ(Ask(deployment.stub(), GoodRequest()), good) << "after " << bad.name;
  }
  // Each line of a log that a stranger can write fills a disk.
  EXPECT_FALSE(absl::StrContains(deployment.gateway().Output(), "libprotobuf"));
  const v1::GetStatusResponse status = deployment.Status();
  for (const auto& worker : status.workers()) {
    SendGarbage(worker.address());
    EXPECT_EQ(Ask(deployment.stub(), GoodRequest()), good)
        << "after garbage on the port of the " << worker.kind();
  }
  EXPECT_TRUE(deployment.WaitIdle());
}

TEST(BadInputTest, ScoreRequestsAreExplained) {
  Deployment deployment(DeploymentOptions{});
  const auto ask = [&](const v1::ScoreRequest& request) {
    grpc::ClientContext context;
    const auto stream = deployment.stub().Score(&context, request);
    v1::ScoreResponse response;
    while (stream->Read(&response)) {
    }
    return stream->Finish();
  };
  v1::ScoreRequest request;
  request.set_text("one two three");
  EXPECT_TRUE(ask(request).ok());
  request.add_positions(10000);
  EXPECT_EQ(ask(request).error_code(), StatusCode::INVALID_ARGUMENT);
  request.clear_positions();
  for (int32_t id : {1, 2, 3}) request.mutable_token_ids()->add_ids(id);
  request.add_positions(2);
  EXPECT_TRUE(ask(request).ok());
  request.set_positions(0, 3);
  EXPECT_THAT(ask(request).error_message(), HasSubstr("names 3, but the last position is 2"));
  request.clear_positions();
  request.set_text("one two three");
  request.add_positions(2);
  request.add_positions(1);
  EXPECT_THAT(ask(request).error_message(), HasSubstr("not ascending"));
  request.clear_positions();
  request.set_path(v1::SCORE_PATH_CHUNK);
  EXPECT_THAT(ask(request).error_message(), HasSubstr("chunk_tokens is 0"));
}

// A copy of the tiny checkpoint that can be spoiled.
class Copy {
 public:
  Copy() { std::filesystem::copy(TinyModel(), dir_.path()); }

  const std::string& path() const { return dir_.path(); }
  std::string Read(const std::string& name) const {
    std::ifstream file(absl::StrCat(path(), "/", name), std::ios::binary);
    return std::string(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
  }
  void Write(const std::string& name, const std::string& bytes) {
    std::ofstream(absl::StrCat(path(), "/", name), std::ios::binary | std::ios::trunc) << bytes;
  }
  void EditHeader(const std::function<void(Json&)>& edit) {
    const std::string bytes = Read("model.safetensors");
    uint64_t length = 0;
    std::memcpy(&length, bytes.data(), sizeof(length));
    Json header = Json::parse(bytes.substr(8, length));
    edit(header);
    const std::string text = header.dump();
    const uint64_t new_length = text.size();
    std::string prefix(8, '\0');
    std::memcpy(prefix.data(), &new_length, sizeof(new_length));
    Write("model.safetensors", absl::StrCat(prefix, text, bytes.substr(8 + length)));
  }
  void EditConfig(const std::function<void(Json&)>& edit) {
    Json config = Json::parse(Read("config.json"));
    edit(config);
    Write("config.json", config.dump());
  }

 private:
  TempDir dir_;
};

constexpr char kTensor[] = "model.layers.1.self_attn.o_proj.weight";

struct BadCheckpoint {
  const char* name;
  std::function<void(Copy&)> spoil;
  std::vector<std::string> sentence;  // all of these
};

const BadCheckpoint kBadCheckpoints[] = {
    {"truncated",
     [](Copy& c) {
       const std::string bytes = c.Read("model.safetensors");
       c.Write("model.safetensors", bytes.substr(0, bytes.size() - 100));
     },
     {"model.safetensors"}},
    {"overlapping",
     [](Copy& c) {
       c.EditHeader([](Json& h) {
         auto& offsets = h[kTensor]["data_offsets"];
         offsets = {offsets[0].get<int64_t>() - 2, offsets[1].get<int64_t>() - 2};
       });
     },
     {"model.safetensors", "overlaps"}},
    {"missing tensor",
     [](Copy& c) {
       c.EditHeader([](Json& h) {
         h["unknown"] = h[kTensor];
         h.erase(kTensor);
       });
     },
     {"model.safetensors", kTensor, "missing"}},
    {"wrong shape",
     [](Copy& c) { c.EditConfig([](Json& j) { j["v_head_dim"] = 40; }); },
     {"model.safetensors", "kv_b_proj", "expected", "found"}},
    {"unknown dtype",
     [](Copy& c) { c.EditHeader([](Json& h) { h[kTensor]["dtype"] = "BF17"; }); },
     {"model.safetensors", kTensor, "BF17"}},
    {"broken header",
     [](Copy& c) { c.Write("model.safetensors", std::string("\x02\0\0\0\0\0\0\0{x", 10)); },
     {"model.safetensors", "JSON"}},
    {"oversized header",
     [](Copy& c) { c.Write("model.safetensors", std::string("\xff\xff\xff\xff\xff\0\0\0{}", 10)); },
     {"model.safetensors", "header claims"}},
    {"broken config",
     [](Copy& c) { c.Write("config.json", "{\"model_type\": "); },
     {"config.json", "JSON"}},
    {"missing config",
     [](Copy& c) { std::filesystem::remove(absl::StrCat(c.path(), "/config.json")); },
     {"config.json"}},
    {"another architecture",
     [](Copy& c) { c.EditConfig([](Json& j) { j["model_type"] = "llama"; }); },
     {"config.json", "llama"}},
    {"another router",
     [](Copy& c) { c.EditConfig([](Json& j) { j["topk_method"] = "noaux_tc"; }); },
     {"config.json", "noaux_tc"}},
    {"no MLA",
     [](Copy& c) { c.EditConfig([](Json& j) { j["use_mla"] = false; }); },
     {"config.json", "use_mla"}},
    {"end id outside the vocabulary",
     [](Copy& c) { c.Write("generation_config.json", "{\"eos_token_id\": [1023, 1040]}"); },
     {"generation_config.json", "eos_token_id is 1040", "0 to 1039"}},
    {"generation config that is a folder",
     [](Copy& c) {
       std::filesystem::remove(absl::StrCat(c.path(), "/generation_config.json"));
       std::filesystem::create_directory(absl::StrCat(c.path(), "/generation_config.json"));
     },
     {"generation_config.json", "not a regular file"}},
    {"broken tokenizer", [](Copy& c) { c.Write("tokenizer.json", "{]"); }, {"tokenizer.json"}},
};

TEST(BadInputTest, EveryBadCheckpointIsRefusedInOneSentence) {
  for (const BadCheckpoint& bad : kBadCheckpoints) {
    Copy copy;
    bad.spoil(copy);
    TempDir dir;
    Process gateway({Binary("tandem-gateway"), "--model", copy.path(), "--listen", "127.0.0.1:0"},
                    absl::StrCat(dir.path(), "/log"));
    EXPECT_EQ(gateway.Wait(kExitLimit), 1) << bad.name;
    for (const std::string& part : bad.sentence) {
      EXPECT_THAT(gateway.Output(), HasSubstr(part)) << bad.name;
    }
  }
}

TEST(BadInputTest, WorkersOfAnotherCheckpointAreRefusedAndTheDeploymentGoesOn) {
  DeploymentOptions options;
  options.attention_workers = 1;
  options.expert_workers = 1;
  Deployment deployment(options);
  const Answer good = Ask(deployment.stub(), GoodRequest());
  ASSERT_TRUE(good.status.ok()) << good.status.error_message();
  const std::string registry = deployment.gateway().WaitForWord("registry on ", kExitLimit);

  Copy other;  // the same shapes, one value differs
  std::string bytes = other.Read("model.safetensors");
  bytes[bytes.size() - 1] ^= 1;
  other.Write("model.safetensors", bytes);
  Copy other_config;
  other_config.EditConfig([](Json& j) { j["rms_norm_eps"] = 1e-5; });
  for (const char* binary : {"tandem-attention-worker", "tandem-expert-worker"}) {
    for (const Copy* copy : {&other, &other_config}) {
      TempDir dir;
      Process worker(
          {Binary(binary), "--model", copy->path(), "--dtype", "f32", "--registry", registry},
          absl::StrCat(dir.path(), "/log"));
      EXPECT_EQ(worker.Wait(kExitLimit), 1) << binary;
      EXPECT_THAT(worker.Output(), HasSubstr("digest")) << binary;
    }
  }
  TempDir dir;
  Process dtype({Binary("tandem-expert-worker"), "--model", TinyModel(), "--dtype", "bf16",
                 "--registry", registry},
                absl::StrCat(dir.path(), "/log"));
  EXPECT_EQ(dtype.Wait(kExitLimit), 1);
  EXPECT_THAT(dtype.Output(), HasSubstr("dtype"));
  EXPECT_EQ(Ask(deployment.stub(), GoodRequest()), good);
}

TEST(BadInputTest, FlagsOfWorkersAreNotTheGatewaysBesideARegistry) {
  for (const char* flag : {"--device", "--gpu-memory", "--threads", "--weights", "--packed-weights",
                           "--numerics", "--cache-tokens"}) {
    TempDir dir;
    const std::string value = std::string(flag) == "--device"     ? "cpu"
                              : std::string(flag) == "--weights"  ? "f32"
                              : std::string(flag) == "--numerics" ? "auto"
                                                                  : "64";
    Process gateway({Binary("tandem-gateway"), "--model", TinyModel(), "--listen", "127.0.0.1:0",
                     "--registry", "127.0.0.1:0", flag, value},
                    absl::StrCat(dir.path(), "/log"));
    EXPECT_EQ(gateway.Wait(kExitLimit), 2) << flag;
    EXPECT_THAT(gateway.Output(), HasSubstr(absl::StrCat("--registry excludes ", flag)));
  }
}

TEST(BadInputTest, ListeningBeyondLoopbackNeedsAFlag) {
  TempDir dir;
  Process gateway({Binary("tandem-gateway"), "--model", TinyModel(), "--listen", "0.0.0.0:0"},
                  absl::StrCat(dir.path(), "/log"));
  EXPECT_EQ(gateway.Wait(kExitLimit), 1);
  EXPECT_THAT(gateway.Output(), HasSubstr("--insecure-listen"));
}

TEST(BadInputTest, ACheckpointWithoutTokenizerServesIds) {
  Copy copy;
  std::filesystem::remove(absl::StrCat(copy.path(), "/tokenizer.json"));
  DeploymentOptions options;
  options.model = copy.path();
  Deployment deployment(options);
  const Answer text = Ask(deployment.stub(), GoodRequest());
  EXPECT_EQ(text.status.error_code(), StatusCode::FAILED_PRECONDITION);
  EXPECT_THAT(text.status.error_message(), HasSubstr("no tokenizer.json"));
  v1::GenerateRequest request = GoodRequest();
  request.mutable_token_ids()->add_ids(5);
  EXPECT_EQ(Ask(deployment.stub(), request).ids.size(), 4u);
}

}  // namespace
}  // namespace tandem::test
