#include "io.h"

#include <fstream>
#include <iostream>
#include <iterator>
#include <limits>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "common/status.h"

namespace tandem::tool {

absl::StatusOr<std::string> ReadFile(const std::string& path) {
  if (path == "-") {
    return std::string(std::istreambuf_iterator<char>(std::cin), std::istreambuf_iterator<char>());
  }
  std::ifstream file(path, std::ios::binary);
  if (!file) return absl::NotFoundError(absl::StrCat("cannot read ", path));
  return std::string(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
}

absl::StatusOr<std::vector<int32_t>> ReadIdsFile(const std::string& path) {
  TANDEM_ASSIGN_OR_RETURN(const std::string text, ReadFile(path));
  std::vector<int32_t> ids;
  for (absl::string_view word :
       absl::StrSplit(text, absl::ByAnyChar(" \t\r\n"), absl::SkipEmpty())) {
    int32_t id = 0;
    if (!absl::SimpleAtoi(word, &id)) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, " holds \"", word, "\", which is not a token id"));
    }
    ids.push_back(id);
  }
  return ids;
}

absl::StatusOr<std::vector<uint32_t>> ParsePositions(const std::string& text) {
  std::vector<uint32_t> positions;
  for (absl::string_view word : absl::StrSplit(text, ',', absl::SkipWhitespace())) {
    uint32_t position = 0;
    if (!absl::SimpleAtoi(absl::StripAsciiWhitespace(word), &position)) {
      return absl::InvalidArgumentError(
          absl::StrCat("--positions holds \"", word, "\", which is not a position"));
    }
    positions.push_back(position);
  }
  return positions;
}

absl::Status ForEachJsonLine(const std::string& path,
                             const std::function<absl::Status(const nlohmann::json&)>& handle) {
  std::ifstream file;
  if (path != "-") {
    file.open(path, std::ios::binary);
    if (!file) return absl::NotFoundError(absl::StrCat("cannot read ", path));
  }
  std::istream& in = path == "-" ? std::cin : file;
  std::string line;
  for (int64_t number = 1; std::getline(in, line); ++number) {
    if (absl::StripAsciiWhitespace(line).empty()) continue;
    const nlohmann::json json = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
    absl::Status status = json.is_object()
                              ? handle(json)
                              : absl::InvalidArgumentError("the line is not a JSON object");
    if (!status.ok()) {
      return absl::Status(status.code(),
                          absl::StrCat(path, " line ", number, ": ", status.message()));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> StringMember(const nlohmann::json& object, const char* name) {
  const auto it = object.is_object() ? object.find(name) : object.end();
  if (it == object.end() || !it->is_string()) {
    return absl::InvalidArgumentError(absl::StrCat("\"", name, "\" is missing or not a string"));
  }
  return it->get<std::string>();
}

absl::StatusOr<std::vector<int32_t>> IdsMember(const nlohmann::json& object, const char* name) {
  const auto it = object.is_object() ? object.find(name) : object.end();
  if (it == object.end() || !it->is_array()) {
    return absl::InvalidArgumentError(absl::StrCat("\"", name, "\" is missing or not an array"));
  }
  std::vector<int32_t> ids;
  for (const nlohmann::json& id : *it) {
    if (!id.is_number_integer() || id.get<int64_t>() < std::numeric_limits<int32_t>::min() ||
        id.get<int64_t>() > std::numeric_limits<int32_t>::max()) {
      return absl::InvalidArgumentError(
          absl::StrCat("\"", name, "\" holds ", Dump(id), ", which is not a token id"));
    }
    ids.push_back(id.get<int32_t>());
  }
  return ids;
}

absl::StatusOr<std::vector<ChatMessage>> MessagesMember(const nlohmann::json& object) {
  const auto it = object.is_object() ? object.find("messages") : object.end();
  if (it == object.end() || !it->is_array()) {
    return absl::InvalidArgumentError("\"messages\" is missing or not an array");
  }
  std::vector<ChatMessage> messages;
  for (const nlohmann::json& message : *it) {
    TANDEM_ASSIGN_OR_RETURN(std::string role, StringMember(message, "role"));
    TANDEM_ASSIGN_OR_RETURN(std::string content, StringMember(message, "content"));
    messages.push_back({std::move(role), std::move(content)});
  }
  return messages;
}

std::string Dump(const nlohmann::json& json) {
  return json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

absl::Status WriteNpy(const std::string& path, const std::vector<std::string>& rows, size_t width) {
  std::string header = absl::StrCat("{'descr': '<f4', 'fortran_order': False, 'shape': (",
                                    rows.size(), ", ", width, "), }");
  constexpr size_t kPreamble = 10;  // magic, version, length of the header
  header.append(63 - (kPreamble + header.size()) % 64, ' ');
  header += '\n';
  std::ofstream file(path, std::ios::binary);
  file.write("\x93NUMPY\x01\x00", 8);
  const char length[2] = {static_cast<char>(header.size() & 0xff),
                          static_cast<char>(header.size() >> 8)};
  file.write(length, 2);
  file << header;
  for (const std::string& row : rows) file << row;
  file.flush();
  if (!file) return absl::UnknownError(absl::StrCat("cannot write ", path));
  return absl::OkStatus();
}

}  // namespace tandem::tool
