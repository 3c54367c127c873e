// tokenizer.json, a zero, tokenizer_config.json, a zero, text: what can be loaded also tokenizes,
// and gives the text back.

#include "common/tokenizer/tokenizer.h"
#include "common/tokenizer/utf8.h"
#include "tests/fuzz/fuzz.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace tandem;
  fuzz::Input input(data, size);
  const absl::string_view file = input.Until('\0');
  const absl::string_view config = input.Until('\0');
  const auto tokenizer = Tokenizer::Parse(file, config);
  if (!tokenizer.ok()) return 0;
  const absl::string_view text = input.Take(256);
  for (const auto added : {Tokenizer::AddedTokens::kMatch, Tokenizer::AddedTokens::kPlain}) {
    const auto ids = (*tokenizer)->Encode(text, added, /*add_bos=*/false);
    if (!ids.ok()) continue;
    for (const int32_t id : *ids) TANDEM_CHECK((*tokenizer)->HasToken(id));
    TANDEM_CHECK((*tokenizer)->Decode(*ids, /*skip_special=*/false).ok());
  }
  (void)(*tokenizer)->EncodeChat({{"user", std::string(text)}}, /*add_generation_prompt=*/true);
  return 0;
}
