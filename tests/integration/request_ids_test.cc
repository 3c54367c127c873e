// A request's id and its trace are with whoever works on it: in the answer's metadata, and in every
// program's log.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <string>

#include "tests/integration/deployment.h"

namespace tandem::test {
namespace {

using testing::HasSubstr;
using testing::Not;

const std::string kTraceId = "0af7651916cd43dd8448eb211c80319c";
const std::string kTraceparent = "00-" + kTraceId + "-b7ad6b7169203331-01";
constexpr absl::Duration kLimit = absl::Seconds(30);

// Generates with these metadata, and returns the id that the answer's have.
std::string Generate(v1::Inference::Stub& stub, const std::map<std::string, std::string>& metadata,
                     const std::string& model = "") {
  grpc::ClientContext context;
  for (const auto& [key, value] : metadata) context.AddMetadata(key, value);
  v1::GenerateRequest request;
  request.set_model(model);
  request.set_text("one two three");
  request.set_max_tokens(2);
  request.set_ignore_eos(true);
  const auto reader = stub.Generate(&context, request);
  for (v1::GenerateResponse response; reader->Read(&response);) {
  }
  EXPECT_EQ(reader->Finish().ok(), model.empty());
  const auto& answered = context.GetServerInitialMetadata();
  const auto id = answered.find("x-request-id");
  return id == answered.end() ? "" : std::string(id->second.data(), id->second.size());
}

bool WaitForLine(const Process& process, const std::string& line) {
  return WaitUntil([&] { return process.Output().find(line) != std::string::npos; }, kLimit);
}

class RequestIdsTest : public testing::TestWithParam<const char*> {};  // --expert-link

TEST_P(RequestIdsTest, AreInEveryProgramsLogWithTheTrace) {
  DeploymentOptions options;
  options.attention_workers = 1;
  options.expert_workers = 1;
  options.gateway_flags = {"--log-requests", "all"};
  options.worker_flags = {"--log-level", "debug", "--expert-link", GetParam()};
  Deployment deployment(options);
  EXPECT_EQ(Generate(deployment.stub(), {{"x-request-id", "mine-7f31"},
                                         {"traceparent", kTraceparent},
                                         {"tracestate", "rojo=1"}}),
            "mine-7f31");
  const std::string both = " request_id=mine-7f31 trace_id=" + kTraceId;
  EXPECT_TRUE(WaitForLine(deployment.gateway(), "Generate ended" + both))
      << deployment.gateway().Output();
  const Process& attention = *deployment.workers()[0];
  EXPECT_TRUE(WaitForLine(attention, "is opened" + both)) << attention.Output();
  const Process& expert = *deployment.workers()[1];
  EXPECT_TRUE(WaitForLine(expert, " trace_id=" + kTraceId + " step=")) << expert.Output();

  // Without any, and with some that are not valid, it goes on under an id of its own.
  const std::string drawn =
      Generate(deployment.stub(), {{"x-request-id", "no id"}, {"traceparent", "00-" + kTraceId}});
  EXPECT_EQ(drawn.size(), 32u);
  EXPECT_TRUE(WaitForLine(deployment.gateway(),
                          "Generate ended request_id=" + drawn + " finish_reason=length"));
  EXPECT_TRUE(WaitForLine(attention, "is opened request_id=" + drawn + "\n"));
  EXPECT_NE(Generate(deployment.stub(), {}), drawn);

  // One that is refused has an id as well, and what was wrong is not quoted.
  EXPECT_EQ(Generate(deployment.stub(), {{"x-request-id", "refused"}}, "no-such-model"), "refused");
  EXPECT_TRUE(WaitForLine(deployment.gateway(), "Generate ended request_id=refused"));
  for (const std::string& text : {std::string("one two"), std::string("no-such-model")}) {
    EXPECT_THAT(deployment.gateway().Output(), Not(HasSubstr(text)));
    EXPECT_THAT(attention.Output(), Not(HasSubstr(text)));
    EXPECT_THAT(expert.Output(), Not(HasSubstr(text)));
  }
}

INSTANTIATE_TEST_SUITE_P(Links, RequestIdsTest, testing::Values("auto", "grpc"),
                         [](const auto& info) { return std::string(info.param); });

}  // namespace
}  // namespace tandem::test
