// Chat templates of the DeepSeek-V2 family. There is no Jinja engine here: the known templates are
// recognised by their text, and any other is refused.
#ifndef TANDEM_COMMON_TOKENIZER_CHAT_TEMPLATE_H_
#define TANDEM_COMMON_TOKENIZER_CHAT_TEMPLATE_H_

#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "common/tokenizer/regex.h"

namespace tandem {

struct ChatMessage {
  std::string role;     // "system", "user" or "assistant"
  std::string content;  // UTF-8, not trusted
};

// A stretch of a rendered chat.
struct ChatSegment {
  std::string text;
  bool is_template;  // written by the template, so that added tokens in it count; else by a person
};

enum class ChatFormat {
  // DeepSeek-V2-Lite-Chat, DeepSeek-V2-Chat, DeepSeek-Coder-V2(-Lite)-Instruct:
  //   BOS, then per message "<system>\n\n", "User: <user>\n\n", "Assistant: <assistant>" EOS;
  //   the generation prompt is "Assistant:" without a space behind it.
  kUserAssistant,
  // DeepSeek-V2.5, without its tool calls:
  //   BOS, the last system message, then "<｜User｜><user>" and "<｜Assistant｜><assistant>" EOS;
  //   the generation prompt is "<｜Assistant｜>".
  kUserAssistantTokens,
};

// Returns FailedPrecondition if `jinja` is not a template of one of these formats. White space at
// its end, line breaks as CR LF, and \n for a line break, as tools write them, change nothing;
// every other byte counts.
absl::StatusOr<ChatFormat> RecognizeChatTemplate(absl::string_view jinja);

// Renders conversations as the Jinja templates do. Immutable; any thread may use it.
class ChatTemplate {
 public:
  // `bos` and `eos` are the texts of these tokens.
  ChatTemplate(ChatFormat format, std::string bos, std::string eos)
      : format_(format), bos_(std::move(bos)), eos_(std::move(eos)) {}

  // Returns InvalidArgument if there is no message or one has a role that the templates don't know
  // (they would skip it silently).
  static absl::Status Validate(absl::Span<const ChatMessage> messages);

  // The rendered chat, in order; joined, the segments are what Jinja would give. Contents are not
  // stripped, and never escape from their segments. Messages of unknown roles are skipped.
  // `assistant_turns`, if it is not null, gets where in the joined text the assistant's turns are,
  // each from the last byte of what would be its generation prompt to its end.
  std::vector<ChatSegment> Render(absl::Span<const ChatMessage> messages,
                                  bool add_generation_prompt,
                                  std::vector<TextRange>* assistant_turns = nullptr) const;

 private:
  ChatFormat format_;
  std::string bos_;
  std::string eos_;
};

}  // namespace tandem

#endif  // TANDEM_COMMON_TOKENIZER_CHAT_TEMPLATE_H_
