// Times Tokenizer::Encode on one thread. compare.py runs this next to Hugging Face `tokenizers`.
//
// Input: a file of texts that are separated by NUL bytes. Prints one line: the bytes of all texts,
// and the seconds of each repetition over all of them.
#include <chrono>
#include <cstdint>
#include <fstream>
#include <iostream>
#include <iterator>
#include <string>
#include <vector>

#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"
#include "common/command_line.h"
#include "common/tokenizer/tokenizer.h"

int main(int argc, char** argv) {
  std::string model;
  std::string texts_path;
  std::string ids_path;
  int num_repeats = 5;
  tandem::CommandLine app("Times the tokenizer on one thread.");
  app.AddOption("--model", model, "Folder with tokenizer.json").Required();
  app.AddOption("--texts", texts_path, "File of texts, separated by NUL bytes").Required();
  app.AddOption("--ids", ids_path, "Where to write the ids, a line per text");
  app.AddOption("--repeats", num_repeats, "Repetitions over all texts");
  if (const auto code = app.Parse(argc, argv)) return *code;

  const auto tokenizer = tandem::Tokenizer::Load(model);
  if (!tokenizer.ok()) {
    std::cerr << tokenizer.status().message() << "\n";
    return 1;
  }
  std::ifstream file(texts_path, std::ios::binary);
  if (!file) {
    std::cerr << texts_path << ": cannot be read\n";
    return 1;
  }
  const std::string content{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  const std::vector<absl::string_view> texts = absl::StrSplit(content, '\0');

  std::vector<std::vector<int32_t>> ids;
  const auto encode_all = [&] {
    ids.clear();
    for (const absl::string_view text : texts) {
      auto encoded =
          (*tokenizer)->Encode(text, tandem::Tokenizer::AddedTokens::kMatch, /*add_bos=*/false);
      if (!encoded.ok()) {
        std::cerr << encoded.status().message() << "\n";
        return false;
      }
      ids.push_back(*std::move(encoded));
    }
    return true;
  };
  if (!encode_all()) return 1;  // warms up, and gives the ids that are checked
  if (!ids_path.empty()) {
    std::ofstream out(ids_path);
    for (const std::vector<int32_t>& line : ids) {
      for (const int32_t id : line) out << id << ' ';
      out << '\n';
    }
  }
  std::cout << content.size() - (texts.size() - 1);
  for (int i = 0; i < num_repeats; ++i) {
    const auto start = std::chrono::steady_clock::now();
    if (!encode_all()) return 1;
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    std::cout << ' ' << seconds.count();
  }
  std::cout << '\n';
  return 0;
}
