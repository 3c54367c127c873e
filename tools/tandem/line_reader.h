// Lines that a person types: with a prompt, line editing and a history on a terminal, plain
// otherwise.
#ifndef TANDEM_TOOLS_TANDEM_LINE_READER_H_
#define TANDEM_TOOLS_TANDEM_LINE_READER_H_

#include <memory>
#include <optional>
#include <string>

namespace tandem::tool {

// Reads standard input; the prompt goes to standard error, so that standard output holds answers
// only. One at a time, on one thread.
class LineReader {
 public:
  explicit LineReader(std::string prompt);
  ~LineReader();

  // Whether both are a terminal: then there are editing and a history (of this object, not kept in
  // a file), and Ctrl-C at the prompt clears the line.
  bool interactive() const { return editor_ != nullptr; }

  // The next line without its newline; nullopt at the end (Ctrl-D on an empty line).
  std::optional<std::string> Read();

 private:
  struct Editor;
  const std::string prompt_;
  std::unique_ptr<Editor> editor_;  // null: not on a terminal
};

}  // namespace tandem::tool

#endif  // TANDEM_TOOLS_TANDEM_LINE_READER_H_
