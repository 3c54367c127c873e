#include "common/tokenizer/chat_template.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <cstddef>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"

namespace tandem {
namespace {

// DeepSeek-V2-Lite's template; the line breaks are inside of its string literals.
constexpr absl::string_view kUserAssistantJinja =
    "{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}"
    "{% endif %}{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ 'User: ' + message['content'] + '\n\n' }}{% elif message['role'] == 'assistant' %}"
    "{{ 'Assistant: ' + message['content'] + eos_token }}{% elif message['role'] == 'system' %}"
    "{{ message['content'] + '\n\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}";

// DeepSeek-V2.5's template, mostly about tool calls, is known by its length and XXH3.
constexpr size_t kUserAssistantTokensBytes = 2323;
constexpr XXH64_hash_t kUserAssistantTokensHash = 0x5d8f46e84b7785dd;

// V2.5's template indents its {% set %} of the system prompt, and Jinja writes that indentation,
// before BOS, for each system message.
constexpr absl::string_view kSystemIndentation = "        ";

class Rendering {
 public:
  void Template(absl::string_view text) { Append(text, true); }
  void Content(absl::string_view text) { Append(text, false); }
  // An assistant's turn, which begins with `prompt`, the generation prompt, and `space`.
  void Turn(absl::string_view prompt, absl::string_view space, absl::string_view content,
            absl::string_view eos) {
    const size_t begin = size_ + prompt.size() - 1;
    Template(prompt);
    Template(space);
    Content(content);
    Template(eos);
    turns_.push_back({static_cast<uint32_t>(begin), static_cast<uint32_t>(size_)});
  }
  std::vector<ChatSegment> Take() { return std::move(segments_); }
  std::vector<TextRange> TakeTurns() { return std::move(turns_); }

 private:
  void Append(absl::string_view text, bool is_template) {
    if (text.empty()) return;
    size_ += text.size();
    if (segments_.empty() || segments_.back().is_template != is_template) {
      segments_.push_back({"", is_template});
    }
    segments_.back().text.append(text.data(), text.size());
  }

  std::vector<ChatSegment> segments_;
  std::vector<TextRange> turns_;
  size_t size_ = 0;  // in bytes
};

void RenderUserAssistant(absl::Span<const ChatMessage> messages, const std::string& bos,
                         const std::string& eos, bool add_generation_prompt, Rendering* out) {
  out->Template(bos);
  for (const ChatMessage& message : messages) {
    if (message.role == "user") {
      out->Template("User: ");
      out->Content(message.content);
      out->Template("\n\n");
    } else if (message.role == "assistant") {
      out->Turn("Assistant:", " ", message.content, eos);
    } else if (message.role == "system") {
      out->Content(message.content);
      out->Template("\n\n");
    }
  }
  if (add_generation_prompt) out->Template("Assistant:");
}

void RenderUserAssistantTokens(absl::Span<const ChatMessage> messages, const std::string& bos,
                               bool add_generation_prompt, Rendering* out) {
  absl::string_view system;
  for (const ChatMessage& message : messages) {
    if (message.role != "system") continue;
    out->Template(kSystemIndentation);
    system = message.content;
  }
  out->Template(bos);
  out->Content(system);
  for (const ChatMessage& message : messages) {
    if (message.role == "user") {
      out->Template("<｜User｜>");
      out->Content(message.content);
    } else if (message.role == "assistant") {
      out->Turn("<｜Assistant｜>", "", message.content, "<｜end▁of▁sentence｜>");
    }
  }
  if (add_generation_prompt) out->Template("<｜Assistant｜>");
}

}  // namespace

absl::StatusOr<ChatFormat> RecognizeChatTemplate(absl::string_view jinja) {
  // Jinja reads CR LF as a line break too.
  const std::string text =
      absl::StrReplaceAll(absl::StripTrailingAsciiWhitespace(jinja), {{"\r\n", "\n"}});
  if (absl::StrReplaceAll(text, {{"\\n", "\n"}}) == kUserAssistantJinja) {
    return ChatFormat::kUserAssistant;
  }
  if (text.size() == kUserAssistantTokensBytes &&
      XXH3_64bits(text.data(), text.size()) == kUserAssistantTokensHash) {
    return ChatFormat::kUserAssistantTokens;
  }
  return absl::FailedPreconditionError(
      "the checkpoint's chat template is not one of DeepSeek-V2's that this server knows, so it "
      "serves completions but no chats");
}

absl::Status ChatTemplate::Validate(absl::Span<const ChatMessage> messages) {
  if (messages.empty()) return absl::InvalidArgumentError("a chat needs at least one message");
  for (size_t i = 0; i < messages.size(); ++i) {
    const std::string& role = messages[i].role;
    if (role != "system" && role != "user" && role != "assistant") {
      return absl::InvalidArgumentError(absl::StrCat("messages[", i, "] has the role \"", role,
                                                     "\", expected system, user or assistant"));
    }
  }
  return absl::OkStatus();
}

std::vector<ChatSegment> ChatTemplate::Render(absl::Span<const ChatMessage> messages,
                                              bool add_generation_prompt,
                                              std::vector<TextRange>* assistant_turns) const {
  Rendering rendering;
  switch (format_) {
    case ChatFormat::kUserAssistant:
      RenderUserAssistant(messages, bos_, eos_, add_generation_prompt, &rendering);
      break;
    case ChatFormat::kUserAssistantTokens:
      RenderUserAssistantTokens(messages, bos_, add_generation_prompt, &rendering);
      break;
  }
  if (assistant_turns != nullptr) *assistant_turns = rendering.TakeTurns();
  return rendering.Take();
}

}  // namespace tandem
