// What a client asks a gateway: which method, then the request as it lies on the wire.

#include <cstdlib>
#include <utility>

#include "common/service/bearer_tokens.h"
#include "gateway/validate.h"
#include "proto/inference.pb.h"
#include "tests/fuzz/fuzz.h"
#include "tests/source_path.h"

namespace {

using namespace tandem;

const ServedModel& Model() {
  static const auto* const model = [] {
    const std::string dir = test::SourcePath("tests/golden/tiny");
    auto* const served = new ServedModel;
    served->name = "tiny";
    auto config = LoadModelConfig(dir);
    TANDEM_CHECK(config.ok());
    served->config = *std::move(config);
    auto tokenizer = Tokenizer::Load(dir);
    TANDEM_CHECK(tokenizer.ok());
    served->tokenizer = *std::move(tokenizer);
    served->eos_ids = served->config.eos_token_ids;
    return served;
  }();
  return *model;
}

void CheckIds(const std::vector<int32_t>& ids) {
  TANDEM_CHECK(ids.size() <= static_cast<size_t>(Model().config.max_position_embeddings));
  for (const int32_t id : ids) TANDEM_CHECK(id >= 0 && id < Model().config.vocab_size);
}

template <typename Request>
bool Parse(absl::string_view bytes, Request* request) {
  return request->ParseFromArray(bytes.data(), static_cast<int>(bytes.size()));
}

void Generate(absl::string_view bytes) {
  v1::GenerateRequest request;
  if (!Parse(bytes, &request) || !ValidateTextBytes(request, Model()).ok()) return;
  const auto valid = ValidateGenerate(request, Model());
  if (!valid.ok()) return;
  CheckIds(valid->job.prompt);
  for (const std::string& stop : valid->stop) TANDEM_CHECK(!stop.empty());
}

void Score(absl::string_view bytes) {
  v1::ScoreRequest request;
  if (!Parse(bytes, &request) || !ValidateTextBytes(request, Model()).ok()) return;
  const auto valid = ValidateScore(request, Model(), int64_t{1} << 30);
  if (valid.ok()) CheckIds(valid->job.prompt);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  fuzz::Input input(data, size);
  switch (input.Byte() % 3) {
    case 0:
      Generate(input.Rest());
      break;
    case 1:
      Score(input.Rest());
      break;
    default:
      // An authorization header, and a file of tokens.
      (void)TokenOf(input.Until('\0'));
      (void)BearerTokens::Parse(input.Rest());
  }
  return 0;
}
