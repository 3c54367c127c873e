// Which chat template a checkpoint has: tokenizer_config.json as a whole, or the template's text.

#include "common/tokenizer/chat_template.h"
#include "common/tokenizer/tokenizer_file.h"
#include "tests/fuzz/fuzz.h"

namespace {

void Recognize(absl::string_view jinja) {
  using namespace tandem;
  const auto format = RecognizeChatTemplate(jinja);
  if (!format.ok()) return;
  const ChatTemplate chat(*format, "<bos>", "<eos>");
  const std::string content(jinja.substr(0, 64));
  bool found = false;
  for (const ChatSegment& segment : chat.Render({{"system", "a"}, {"user", content}}, true)) {
    found = found || (!segment.is_template && segment.text == content);
  }
  TANDEM_CHECK(found);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace tandem;
  fuzz::Input input(data, size);
  if (input.Byte() % 2 == 0) {
    Recognize(input.Rest());
    return 0;
  }
  const auto config = ParseTokenizerConfig(input.Rest());
  if (config.ok() && config->chat_template.ok()) Recognize(*config->chat_template);
  return 0;
}
