#include "tools/gpu_bench/op_cases.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <numeric>
#include <random>

#include "absl/strings/str_cat.h"
#include "common/made_up_values.h"
#include "common/pages.h"

namespace tandem::gpu_bench {
namespace {

using kernels::DeviceTensor;

constexpr Dtype kBF16 = Dtype::kBF16, kF32 = Dtype::kF32;
constexpr int64_t kDecodeRows[] = {1, 8, 64, 256};
constexpr int64_t kContexts[] = {512, 4096};
constexpr int64_t kDifferentPages = 64;

template <typename T>
T OrDie(absl::StatusOr<T> result) {
  if (result.ok()) return *std::move(result);
  std::fprintf(stderr, "gpu_bench: %s\n", std::string(result.status().message()).c_str());
  std::abort();
}

// Values of bf16 around `center` with a deviation of `scale`, a power of two, times 0.02.
std::vector<uint16_t> MadeUp(int64_t count, const std::string& name, float scale) {
  const MadeUpTensor tensor = MakeUpTensor(1, name);
  std::vector<uint16_t> values(count);
  const auto exponent = static_cast<uint16_t>(std::ilogb(scale) << 7);
  for (int64_t i = 0; i < count; ++i) {
    values[i] = MadeUpBits(tensor, static_cast<uint64_t>(i));
    if ((values[i] & 0x7F80) != 0) values[i] = static_cast<uint16_t>(values[i] + exponent);
  }
  return values;
}

int64_t Product(std::initializer_list<int64_t> dims) {
  return std::accumulate(dims.begin(), dims.end(), int64_t{1}, std::multiplies<>());
}

// The values that a weight's copies are prepared from, made once for all backends.
OwnedTensor HostWeight(std::initializer_list<int64_t> dims, const std::string& name) {
  static auto* const made = new std::map<std::string, std::shared_ptr<std::vector<uint16_t>>>;
  auto& values = (*made)[absl::StrCat(name, " ", Product(dims))];
  if (values == nullptr) {
    values = std::make_shared<std::vector<uint16_t>>(MadeUp(Product(dims), name, 1.0f));
  }
  return {TensorView(values->data(), kBF16, dims), values};
}

double Bytes(int64_t values) { return 2.0 * static_cast<double>(values); }

}  // namespace

Widths BriefWidths() {
  Widths w;
  w.vocab = 520;
  w.hidden = 64;  // no two widths are alike, as a mix-up of them would be seen
  w.dense = 96;
  w.expert = 40;
  w.shared = 80;
  w.heads = 2;
  w.nope = 32;
  w.rope = 16;
  w.value = 24;
  w.latent = 72;
  w.experts = 8;
  w.top_k = 2;
  w.prefill = 70;
  return w;
}

DeviceTensor Kit::Take(Dtype dtype, std::initializer_list<int64_t> dims) {
  buffers_.push_back(OrDie(backend_->Allocate(
      std::max<size_t>(1, static_cast<size_t>(Product(dims)) * DtypeBytes(dtype)))));
  return buffers_.back()->Tensor(dtype, dims);
}

DeviceTensor Kit::Empty(Dtype dtype, std::initializer_list<int64_t> dims) {
  return Take(dtype, dims);
}

DeviceTensor Kit::Bytes(const void* values, std::initializer_list<int64_t> dims) {
  const DeviceTensor tensor = Take(Dtype::kU8, dims);
  backend_->Write(values, tensor);
  return tensor;
}

DeviceTensor Kit::Ints(const std::vector<int32_t>& values, std::initializer_list<int64_t> dims) {
  const DeviceTensor tensor = Take(Dtype::kI32, dims);
  backend_->Write(values.data(), tensor);
  return tensor;
}

DeviceTensor Kit::Random(Dtype dtype, std::initializer_list<int64_t> dims) {
  const DeviceTensor tensor = Take(dtype, dims);
  const std::vector<uint16_t> values = MadeUp(tensor.elements(), "activations", 64.0f);
  if (dtype == kBF16) {
    backend_->Write(values.data(), tensor);
    return tensor;
  }
  std::vector<uint32_t> wide(values.size());
  std::transform(values.begin(), values.end(), wide.begin(),
                 [](uint16_t bits) { return static_cast<uint32_t>(bits) << 16; });
  backend_->Write(wide.data(), tensor);
  return tensor;
}

DeviceTensor Kit::Pages(int64_t count, int64_t width) {
  const DeviceTensor pages = Take(kBF16, {count, kPageTokens, width});
  const std::vector<uint16_t> values =
      MadeUp(kDifferentPages * kPageTokens * width, "latents", 64.0f);
  for (int64_t page = 0; page < count; page += kDifferentPages) {
    const int64_t here = std::min(kDifferentPages, count - page);
    backend_->Write(values.data(), pages.slice_rows(page * kPageTokens, here * kPageTokens));
  }
  return pages;
}

int64_t Kit::CopiesOf(int64_t values) const {
  const double of_one = gpu_bench::Bytes(values);
  return std::clamp<int64_t>(static_cast<int64_t>(static_cast<double>(rotated_bytes_) / of_one), 1,
                             64);
}

const Kit::Linears& Kit::Linear(int64_t outputs, int64_t inputs) {
  Linears& copies = linears_[{outputs, inputs}];
  while (copies.empty() || static_cast<int64_t>(copies.size()) < CopiesOf(outputs * inputs)) {
    copies.push_back(OrDie(
        backend_->PrepareLinear(HostWeight({outputs, inputs}, "linear"), WeightFormat::kBF16)));
  }
  return copies;
}

const kernels::NormWeight& Kit::Norm(int64_t width) {
  auto& norm = norms_[width];
  if (norm == nullptr) {
    norm = OrDie(backend_->PrepareNorm(HostWeight({width}, "norm.weight"), WeightFormat::kBF16));
  }
  return *norm;
}

const kernels::EmbeddingWeight& Kit::Embedding(int64_t rows, int64_t width) {
  if (embedding_ == nullptr) {
    embedding_ =
        OrDie(backend_->PrepareEmbedding(HostWeight({rows, width}, "linear"), WeightFormat::kBF16));
  }
  return *embedding_;
}

const std::vector<std::unique_ptr<kernels::KvUpWeight>>& Kit::KvUp(
    const kernels::KvUpShape& shape) {
  const int64_t outputs = shape.heads * (shape.nope_width + shape.value_width);
  while (kv_up_.empty() ||
         static_cast<int64_t>(kv_up_.size()) < CopiesOf(outputs * shape.latent_width)) {
    kv_up_.push_back(OrDie(backend_->PrepareKvUp(HostWeight({outputs, shape.latent_width}, "kv_b"),
                                                 shape, WeightFormat::kBF16)));
  }
  return kv_up_;
}

const kernels::ExpertLayer& Kit::Experts(const kernels::ExpertLayerShape& shape) {
  if (experts_ != nullptr) return *experts_;
  experts_ = OrDie(backend_->PrepareExpertLayer(shape, WeightFormat::kBF16));
  for (int expert = 0; expert < shape.num_experts; ++expert) {
    const auto matrix = [&](const char* name, int64_t outputs, int64_t inputs) {
      return HostWeight({outputs, inputs}, absl::StrCat(name, expert));
    };
    OrDie(experts_->Load(expert, {matrix("gate", shape.intermediate, shape.hidden),
                                  matrix("up", shape.intermediate, shape.hidden),
                                  matrix("down", shape.hidden, shape.intermediate)}));
  }
  return *experts_;
}

void Kit::Wait() {
  const DeviceTensor byte = Take(Dtype::kU8, {1});
  char value = 0;
  backend_->Read(byte, &value)->Wait();
  buffers_.pop_back();
}

namespace {

// Linear and Route.
std::vector<OpCase> DenseCases(const Widths& w) {
  std::vector<OpCase> cases;
  const auto linear = [&](const char* name, int64_t inputs, int64_t outputs, Dtype out,
                          bool of_prefill) {
    std::vector<int64_t> all_rows(std::begin(kDecodeRows), std::end(kDecodeRows));
    if (of_prefill) all_rows.push_back(w.prefill);
    for (const int64_t rows : all_rows) {
      const auto row_bytes = static_cast<double>(inputs * 2 + outputs * DtypeBytes(out));
      cases.push_back({name, rows, std::min<int64_t>(rows, 3),
                       Bytes(inputs * outputs) + static_cast<double>(rows) * row_bytes,
                       static_cast<double>(rows * inputs * outputs),
                       [=](Kit& kit, int64_t n) -> std::function<DeviceTensor(int64_t)> {
                         const DeviceTensor x = kit.Random(kBF16, {n, inputs});
                         const DeviceTensor y = kit.Empty(out, {n, outputs});
                         const Kit::Linears& weights = kit.Linear(outputs, inputs);
                         return [=, &kit, &weights](int64_t turn) {
                           kit.backend().Linear({x, *weights[turn % weights.size()], y});
                           return y;
                         };
                       }});
    }
  };
  linear("q_proj", w.hidden, w.heads * (w.nope + w.rope), kBF16, true);
  linear("kv_a_proj", w.hidden, w.latent + w.rope, kBF16, true);
  linear("o_proj", w.heads * w.value, w.hidden, kBF16, true);
  linear("gate, up", w.hidden, w.dense, kBF16, true);
  linear("down", w.dense, w.hidden, kBF16, true);
  linear("shared gate, up", w.hidden, w.shared, kBF16, true);
  linear("shared down", w.shared, w.hidden, kBF16, true);
  linear("lm_head", w.hidden, w.vocab, kF32, false);
  for (const int64_t rows : kDecodeRows) {
    cases.push_back({"Route", rows, std::min<int64_t>(rows, 3),
                     Bytes(w.experts * w.hidden + rows * w.hidden) +
                         static_cast<double>(rows) * 4.0 * static_cast<double>(2 * w.top_k),
                     static_cast<double>(rows * w.experts * w.hidden),
                     [=](Kit& kit, int64_t n) -> std::function<DeviceTensor(int64_t)> {
                       const DeviceTensor x = kit.Random(kBF16, {n, w.hidden});
                       const DeviceTensor ids = kit.Empty(Dtype::kI32, {n, w.top_k});
                       const DeviceTensor weights = kit.Empty(kF32, {n, w.top_k});
                       const Kit::Linears& routers = kit.Linear(w.experts, w.hidden);
                       const int top_k = static_cast<int>(w.top_k);
                       return [=, &kit, &routers](int64_t turn) {
                         kit.backend().Route({x, *routers[turn % routers.size()], top_k, 0, 0,
                                              false, 1.0f, ids, weights});
                         return weights;
                       };
                     }});
  }
  return cases;
}

kernels::KvUpShape ShapeOf(const Widths& w) { return {w.heads, w.nope, w.value, w.latent}; }

OpCase AbsorbedCase(const Widths& w, int64_t rows, int64_t context) {
  const auto n = static_cast<double>(rows);
  const int64_t cached = w.latent + w.rope;
  return {absl::StrCat("MlaAbsorbed, ", context),
          rows,
          std::min<int64_t>(rows, 2),
          n * (Bytes(cached * context) + 4.0 * static_cast<double>(2 * w.heads * w.latent) +
               Bytes(w.heads * w.rope)),
          n * static_cast<double>(w.heads * (2 * w.latent + w.rope) * context),
          [=](Kit& kit, int64_t n) -> std::function<DeviceTensor(int64_t)> {
            const int64_t pages_of_row = PagesFor(context);
            std::vector<int32_t> tables(n * pages_of_row), table_of_row(n);
            std::iota(tables.begin(), tables.end(), 0);
            std::iota(table_of_row.begin(), table_of_row.end(), 0);
            const DeviceTensor out = kit.Empty(kF32, {n, w.heads, w.latent});
            const kernels::MlaAbsorbedArgs args = {
                kit.Random(kF32, {n, w.heads, w.latent}),
                kit.Random(kBF16, {n, w.heads, w.nope + w.rope}),
                kit.Pages(n * pages_of_row, cached),
                kit.Ints(tables, {n, pages_of_row}),
                kit.Ints(table_of_row, {n}),
                kit.Ints(std::vector<int32_t>(n, static_cast<int32_t>(context)), {n}),
                out,
                0.05f};
            return [=, &kit](int64_t) {
              kit.backend().MlaAbsorbed(args);
              return out;
            };
          }};
}

OpCase ExpandedCase(const Widths& w) {
  const auto n = static_cast<double>(w.prefill);
  const int64_t of_head = w.nope + w.rope + w.value;
  return {"MlaExpanded",
          w.prefill,
          std::min<int64_t>(w.prefill, kPageTokens + 1),
          Bytes(w.latent * w.heads * (w.nope + w.value)) +
              n * Bytes(w.latent + w.rope + w.heads * of_head),
          n * static_cast<double>(w.heads) *
              (static_cast<double>(w.latent * (w.nope + w.value)) +
               static_cast<double>(of_head) * (n + 1) / 2),
          [=](Kit& kit, int64_t n) -> std::function<DeviceTensor(int64_t)> {
            std::vector<int32_t> pages(PagesFor(n)), positions(n);
            std::iota(pages.begin(), pages.end(), 0);
            std::iota(positions.begin(), positions.end(), 0);
            const auto num_pages = static_cast<int64_t>(pages.size());
            const DeviceTensor q = kit.Random(kBF16, {n, w.heads, w.nope + w.rope});
            const DeviceTensor cache = kit.Pages(num_pages, w.latent + w.rope);
            const DeviceTensor table = kit.Ints(pages, {num_pages});
            const DeviceTensor at = kit.Ints(positions, {n});
            const DeviceTensor out = kit.Empty(kBF16, {n, w.heads * w.value});
            const auto& kv_up = kit.KvUp(ShapeOf(w));
            return [=, &kit, &kv_up](int64_t turn) {
              kit.backend().MlaExpanded(
                  {q, *kv_up[turn % kv_up.size()], cache, table, at, n, out, 0.05f});
              return out;
            };
          }};
}

std::vector<OpCase> MlaCases(const Widths& w) {
  std::vector<OpCase> cases = {AbsorbedCase(w, 128, 1024)};
  for (const int64_t context : kContexts) {
    for (const int64_t rows : kDecodeRows) cases.push_back(AbsorbedCase(w, rows, context));
  }
  for (const int64_t rows : kDecodeRows) {
    for (const bool is_query : {true, false}) {
      const double row_bytes =
          Bytes(w.heads * w.nope) + 4.0 * static_cast<double>(w.heads * w.latent);
      cases.push_back({is_query ? "MlaAbsorbQuery" : "MlaProjectValue", rows,
                       std::min<int64_t>(rows, 3),
                       Bytes(w.heads * w.nope * w.latent) + static_cast<double>(rows) * row_bytes,
                       static_cast<double>(rows * w.heads * w.nope * w.latent),
                       [=](Kit& kit, int64_t n) -> std::function<DeviceTensor(int64_t)> {
                         const DeviceTensor q = kit.Random(kBF16, {n, w.heads, w.nope + w.rope});
                         const DeviceTensor latent = kit.Random(kF32, {n, w.heads, w.latent});
                         const DeviceTensor values = kit.Empty(kBF16, {n, w.heads * w.value});
                         const auto& kv_up = kit.KvUp(ShapeOf(w));
                         return [=, &kit, &kv_up](int64_t turn) {
                           const kernels::KvUpWeight& weight = *kv_up[turn % kv_up.size()];
                           if (is_query) {
                             kit.backend().MlaAbsorbQuery({q, weight, latent});
                             return latent;
                           }
                           kit.backend().MlaProjectValue({latent, weight, values});
                           return values;
                         };
                       }});
    }
  }
  cases.push_back(ExpandedCase(w));
  return cases;
}

// Each row's experts, drawn by the row's number.
std::vector<int32_t> DrawRoutes(int64_t rows, const Widths& w) {
  std::vector<int32_t> routes;
  for (int64_t row = 0; row < rows; ++row) {
    std::vector<int32_t> experts(w.experts);
    std::iota(experts.begin(), experts.end(), 0);
    std::mt19937_64 random(static_cast<uint64_t>(row));
    for (int64_t i = 0; i < w.top_k; ++i) {
      std::swap(experts[i], experts[i + static_cast<int64_t>(random() % (w.experts - i))]);
      routes.push_back(experts[i]);
    }
  }
  return routes;
}

std::vector<OpCase> ExpertCases(const Widths& w) {
  std::vector<OpCase> cases;
  for (const int64_t rows :
       {int64_t{1}, int64_t{2}, int64_t{4}, int64_t{8}, int64_t{16}, int64_t{32}, int64_t{64},
        int64_t{128}, int64_t{256}, int64_t{512}, w.prefill}) {
    std::vector<int32_t> experts = DrawRoutes(rows, w);
    const auto routes = static_cast<double>(experts.size());
    std::sort(experts.begin(), experts.end());
    const int64_t hit = std::unique(experts.begin(), experts.end()) - experts.begin();
    const int64_t matrix = w.expert * w.hidden;
    cases.push_back(
        {absl::StrCat("ExpertMlp, ", hit, " experts"), rows, std::min<int64_t>(rows, 3),
         Bytes(3 * hit * matrix) + static_cast<double>(rows) * Bytes(w.hidden) +
             routes * Bytes(2 * w.expert + w.hidden),
         routes * static_cast<double>(3 * matrix),
         [=](Kit& kit, int64_t n) -> std::function<DeviceTensor(int64_t)> {
           const int64_t num_routes = n * w.top_k;
           std::vector<int32_t> rows_of(num_routes);
           for (int64_t i = 0; i < num_routes; ++i) rows_of[i] = static_cast<int32_t>(i / w.top_k);
           const DeviceTensor x = kit.Random(kBF16, {n, w.hidden});
           const DeviceTensor ids = kit.Ints(DrawRoutes(n, w), {num_routes});
           const DeviceTensor of_rows = kit.Ints(rows_of, {num_routes});
           const DeviceTensor out = kit.Empty(kBF16, {num_routes, w.hidden});
           const auto& layer = kit.Experts({static_cast<int>(w.experts), w.hidden, w.expert});
           return [=, &kit, &layer](int64_t) {
             kit.backend().ExpertMlp({x, layer, ids, of_rows, out});
             return out;
           };
         }});
  }
  return cases;
}

// What goes element by element, and Sample.
std::vector<OpCase> RestCases(const Widths& w) {
  std::vector<OpCase> cases;
  using Run = std::function<DeviceTensor(int64_t)>;
  const auto add = [&](const char* name, double row_bytes, bool of_prefill, auto make) {
    std::vector<int64_t> all_rows(std::begin(kDecodeRows), std::end(kDecodeRows));
    if (of_prefill) all_rows.push_back(w.prefill);
    for (const int64_t rows : all_rows) {
      cases.push_back({name, rows, std::min<int64_t>(rows, 3),
                       static_cast<double>(rows) * row_bytes, 0.0, make});
    }
  };
  add("RmsNorm", Bytes(2 * w.hidden), true, [=](Kit& kit, int64_t n) -> Run {
    const DeviceTensor x = kit.Random(kBF16, {n, w.hidden}), y = kit.Empty(kBF16, {n, w.hidden});
    const kernels::NormWeight& norm = kit.Norm(w.hidden);
    return [=, &kit, &norm](int64_t) {
      kit.backend().RmsNorm({x, norm, y, 1e-6f});
      return y;
    };
  });
  add("Add", Bytes(3 * w.hidden), true, [=](Kit& kit, int64_t n) -> Run {
    const DeviceTensor x = kit.Random(kBF16, {n, w.hidden}), y = kit.Empty(kBF16, {n, w.hidden});
    return [=, &kit](int64_t) {
      kit.backend().Add({x, x, y});
      return y;
    };
  });
  add("SiluMul", Bytes(3 * w.dense), true, [=](Kit& kit, int64_t n) -> Run {
    const DeviceTensor x = kit.Random(kBF16, {n, w.dense}), y = kit.Empty(kBF16, {n, w.dense});
    return [=, &kit](int64_t) {
      kit.backend().SiluMul({x, x, y});
      return y;
    };
  });
  add("Combine", Bytes((w.top_k + 1) * w.hidden), true, [=](Kit& kit, int64_t n) -> Run {
    std::vector<int32_t> ends(n + 1);
    for (int64_t i = 0; i <= n; ++i) ends[i] = static_cast<int32_t>(i * w.top_k);
    const DeviceTensor x = kit.Random(kBF16, {n * w.top_k, w.hidden});
    const DeviceTensor offsets = kit.Ints(ends, {n + 1});
    const DeviceTensor weights = kit.Random(kF32, {n * w.top_k});
    const DeviceTensor y = kit.Empty(kBF16, {n, w.hidden});
    return [=, &kit](int64_t) {
      kit.backend().Combine({x, offsets, weights, y});
      return y;
    };
  });
  add("Embed", Bytes(2 * w.hidden), true, [=](Kit& kit, int64_t n) -> Run {
    std::vector<int32_t> tokens(n);
    for (int64_t i = 0; i < n; ++i) tokens[i] = static_cast<int32_t>(i * 37 % w.vocab);
    const DeviceTensor ids = kit.Ints(tokens, {n}), y = kit.Empty(kBF16, {n, w.hidden});
    const kernels::EmbeddingWeight& table = kit.Embedding(w.vocab, w.hidden);
    return [=, &kit, &table](int64_t) {
      kit.backend().Embed({table, ids, y});
      return y;
    };
  });
  // In place: what is checked is the first turn.
  add("Rope", Bytes(2 * w.heads * w.rope) + 4.0 * static_cast<double>(w.rope), true,
      [=](Kit& kit, int64_t n) -> Run {
        const DeviceTensor x = kit.Random(kBF16, {n, w.heads, w.nope + w.rope});
        const DeviceTensor cos_sin = kit.Random(kF32, {n, w.rope});
        return [=, &kit](int64_t) {
          kit.backend().Rope({x, cos_sin});
          return x;
        };
      });
  add("LatentAppend", Bytes(2 * (w.latent + w.rope)) + 4.0 * static_cast<double>(w.rope), true,
      [=](Kit& kit, int64_t n) -> Run {
        std::vector<int32_t> ids(n), places(n);
        for (int64_t i = 0; i < n; ++i) {
          ids[i] = static_cast<int32_t>(i / kPageTokens);
          places[i] = static_cast<int32_t>(i % kPageTokens);
        }
        const kernels::NormWeight& norm = kit.Norm(w.latent);
        const DeviceTensor pages = kit.Empty(kBF16, {PagesFor(n), kPageTokens, w.latent + w.rope});
        const kernels::LatentAppendArgs args = {kit.Random(kBF16, {n, w.latent + w.rope}),
                                                norm,
                                                kit.Random(kF32, {n, w.rope}),
                                                pages,
                                                kit.Ints(ids, {n}),
                                                kit.Ints(places, {n}),
                                                1e-6f};
        return [=, &kit](int64_t) {
          kit.backend().LatentAppend(args);
          return pages.slice_rows(0, n);
        };
      });
  add("Sample", 4.0 * static_cast<double>(w.vocab), false, [=](Kit& kit, int64_t n) -> Run {
    std::vector<kernels::SampleRow> samples;
    for (int64_t i = 0; i < n; ++i) {
      samples.push_back({0.7f, 0, 0.95f, 0x9E3779B97F4A7C15u * static_cast<uint64_t>(i + 1)});
    }
    const DeviceTensor logits = kit.Random(kF32, {n, w.vocab});
    const DeviceTensor rows =
        kit.Bytes(samples.data(), {n, static_cast<int64_t>(sizeof(kernels::SampleRow))});
    const DeviceTensor tokens =
        kit.Empty(Dtype::kU8, {n, static_cast<int64_t>(sizeof(kernels::SampledToken))});
    return [=, &kit](int64_t) {
      kit.backend().Sample({logits, rows, {}, tokens});
      return tokens;
    };
  });
  return cases;
}

}  // namespace

std::vector<OpCase> OpCases(const std::string& group, const Widths& w) {
  if (group == "dense") return DenseCases(w);
  if (group == "mla") return MlaCases(w);
  if (group == "experts") return ExpertCases(w);
  return RestCases(w);
}

}  // namespace tandem::gpu_bench
