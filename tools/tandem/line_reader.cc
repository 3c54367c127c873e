#include "line_reader.h"

#include <histedit.h>
#include <langinfo.h>
#include <unistd.h>

#include <clocale>
#include <cstdio>
#include <cstring>
#include <iostream>
#include <utility>

#include "absl/strings/ascii.h"

namespace tandem::tool {
namespace {

constexpr int kHistoryLines = 1000;

// The editor reads characters in the locale's encoding, and text is UTF-8 here. Nothing else in
// this program asks for a locale. NOLINTBEGIN(concurrency-mt-unsafe)
void UseUtf8() {
  std::setlocale(LC_CTYPE, "");
  if (std::strcmp(nl_langinfo(CODESET), "UTF-8") != 0) std::setlocale(LC_CTYPE, "C.UTF-8");
}
// NOLINTEND(concurrency-mt-unsafe)

char* Prompt(EditLine* editor) {
  void* prompt = nullptr;
  el_get(editor, EL_CLIENTDATA, &prompt);
  return static_cast<char*>(prompt);
}

}  // namespace

struct LineReader::Editor {
  explicit Editor(std::string prompt_text) : prompt(std::move(prompt_text)) {
    UseUtf8();
    editor = el_init("tandem", stdin, stderr, stderr);
    HistEvent event;
    history_lines = history_init();
    history(history_lines, &event, H_SETSIZE, kHistoryLines);
    history(history_lines, &event, H_SETUNIQUE, 1);
    el_set(editor, EL_HIST, history, history_lines);
    el_set(editor, EL_CLIENTDATA, prompt.data());
    el_set(editor, EL_PROMPT, Prompt);
    el_set(editor, EL_EDITOR, "emacs");
    el_source(editor, nullptr);  // the person's ~/.editrc
    // While a line is edited, Ctrl-C is a key, not a signal.
    el_set(editor, EL_SETTY, "-d", "-isig", nullptr);
    el_set(editor, EL_BIND, "^C", "ed-start-over", nullptr);
  }
  ~Editor() {
    el_end(editor);
    history_end(history_lines);
  }

  std::string prompt;
  EditLine* editor;
  History* history_lines;
};

LineReader::LineReader(std::string prompt) : prompt_(std::move(prompt)) {
  if (isatty(STDIN_FILENO) != 0 && isatty(STDERR_FILENO) != 0) {
    editor_ = std::make_unique<Editor>(prompt_);
  }
}

LineReader::~LineReader() = default;

std::optional<std::string> LineReader::Read() {
  std::string line;
  if (editor_ == nullptr) {
    std::fputs(prompt_.c_str(), stderr);
    if (!std::getline(std::cin, line)) return std::nullopt;
    return line;
  }
  // Before the prompt shows: keys that follow it are all the editor's.
  el_set(editor_->editor, EL_PREP_TERM, 1);
  int length = 0;
  const char* const typed = el_gets(editor_->editor, &length);
  if (typed == nullptr) {
    std::fputs("\n", stderr);
    return std::nullopt;
  }
  line.assign(typed, static_cast<size_t>(length));
  if (!line.empty() && line.back() == '\n') line.pop_back();
  if (!absl::StripAsciiWhitespace(line).empty()) {
    HistEvent event;
    history(editor_->history_lines, &event, H_ENTER, line.c_str());
  }
  return line;
}

}  // namespace tandem::tool
