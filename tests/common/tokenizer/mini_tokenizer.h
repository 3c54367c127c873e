// A tokenizer.json small enough to work out by hand: all byte symbols, a few merges, DeepSeek's
// added tokens, and the pre-tokenizer of the pipeline.
#ifndef TANDEM_TESTS_COMMON_TOKENIZER_MINI_TOKENIZER_H_
#define TANDEM_TESTS_COMMON_TOKENIZER_MINI_TOKENIZER_H_

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>

#include "common/tokenizer/byte_symbols.h"
#include "common/tokenizer/deepseek_split.h"

namespace tandem {

constexpr int32_t kMiniBos = 300;
constexpr int32_t kMiniEos = 301;
constexpr int32_t kMiniUser = 302;  // not special

// Ids: byte b is b; he 256, ll 257, hell 258, hello 259, Ġw 260, ab 261, abc 262, bc 263.
inline nlohmann::json MiniTokenizerJson() {
  using nlohmann::json;
  json steps = json::array();
  for (const std::string& pattern : DeepSeekPatterns()) {
    steps.push_back({{"type", "Split"},
                     {"pattern", {{"Regex", pattern}}},
                     {"behavior", "Isolated"},
                     {"invert", false}});
  }
  steps.push_back({{"type", "Digits"}, {"individual_digits", true}});
  steps.push_back({{"type", "ByteLevel"},
                   {"add_prefix_space", false},
                   {"trim_offsets", true},
                   {"use_regex", false}});
  json vocab = json::object();
  for (int byte = 0; byte < 256; ++byte) vocab[ByteSymbol(static_cast<uint8_t>(byte))] = byte;
  json merges = json::array();
  const std::string space = ByteSymbol(' ');
  const std::pair<std::string, std::string> pairs[] = {{"h", "e"},    {"l", "l"},   {"he", "ll"},
                                                       {"hell", "o"}, {space, "w"}, {"a", "b"},
                                                       {"ab", "c"},   {"b", "c"}};
  for (const auto& [left, right] : pairs) {
    vocab[left + right] = 256 + static_cast<int>(merges.size());
    merges.push_back(left + " " + right);
  }
  const auto added = [](int32_t id, const std::string& content, bool special) {
    return json{{"id", id},        {"content", content}, {"single_word", false}, {"lstrip", false},
                {"rstrip", false}, {"normalized", true}, {"special", special}};
  };
  return {{"version", "1.0"},
          {"truncation", nullptr},
          {"padding", nullptr},
          {"added_tokens", json::array({added(kMiniBos, "<｜begin▁of▁sentence｜>", true),
                                        added(kMiniEos, "<｜end▁of▁sentence｜>", true),
                                        added(kMiniUser, "<｜User｜>", false)})},
          {"normalizer", {{"type", "Sequence"}, {"normalizers", json::array()}}},
          {"pre_tokenizer", {{"type", "Sequence"}, {"pretokenizers", steps}}},
          {"post_processor", {{"type", "ByteLevel"}}},
          {"decoder", {{"type", "ByteLevel"}}},
          {"model", {{"type", "BPE"}, {"dropout", nullptr}, {"vocab", vocab}, {"merges", merges}}}};
}

// A post-processor that puts BOS in front of a text.
inline nlohmann::json BosTemplateJson() {
  const char* bos = "<｜begin▁of▁sentence｜>";
  return {{"type", "TemplateProcessing"},
          {"single",
           {{{"SpecialToken", {{"id", bos}, {"type_id", 0}}}},
            {{"Sequence", {{"id", "A"}, {"type_id", 0}}}}}},
          {"pair", nlohmann::json::array()},
          {"special_tokens", {{bos, {{"id", bos}, {"ids", {kMiniBos}}, {"tokens", {bos}}}}}}};
}

inline nlohmann::json MiniConfigJson() {
  return {{"add_bos_token", true},
          {"add_eos_token", false},
          {"bos_token", "<｜begin▁of▁sentence｜>"},
          {"eos_token", {{"__type", "AddedToken"}, {"content", "<｜end▁of▁sentence｜>"}}}};
}

}  // namespace tandem

#endif  // TANDEM_TESTS_COMMON_TOKENIZER_MINI_TOKENIZER_H_
