#include "attention_worker/layer_times.h"

#include "absl/strings/str_cat.h"

namespace tandem {
namespace {

// Of LayerPart.
constexpr std::array<const char*, kNumLayerParts> kPartNames = {"attention", "dispatch", "mlp",
                                                                "expert_wait", "combine"};

// Upper bounds in seconds: from a decode row's on a GPU to a long prompt's on a slow machine.
const prometheus::Histogram::BucketBoundaries kPartSeconds = {
    0.00001, 0.000025, 0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01,
    0.025,   0.05,     0.1,     0.25,   0.5,     1.0,    2.5,   5.0,    10.0,  60.0};

}  // namespace

LayerTimes::LayerTimes(int num_layers) : registry_(std::make_shared<prometheus::Registry>()) {
  auto& over_layers = prometheus::BuildHistogram()
                          .Name("tandem_attention_layer_part_seconds")
                          .Help("Time of each part of a layer, over all layers")
                          .Register(*registry_);
  auto& by_layer = prometheus::BuildCounter()
                       .Name("tandem_attention_layer_seconds_total")
                       .Help("Time of each part of each layer")
                       .Register(*registry_);
  for (size_t i = 0; i < kNumLayerParts; ++i) {
    parts_[i].all = &over_layers.Add({{"part", kPartNames[i]}}, kPartSeconds);
    for (int layer = 0; layer < num_layers; ++layer) {
      parts_[i].of_layer.push_back(
          &by_layer.Add({{"layer", absl::StrCat(layer)}, {"part", kPartNames[i]}}));
    }
  }
}

void LayerTimes::Observe(int layer, LayerPart part, std::chrono::nanoseconds time) {
  const double seconds = std::chrono::duration<double>(time).count();
  Part& observed = parts_[static_cast<size_t>(part)];
  observed.all->Observe(seconds);
  observed.of_layer[layer]->Increment(seconds);
  observed.total_ns += time.count();
}

CounterSnapshot LayerTimes::Sums() const {
  CounterSnapshot sums;
  for (size_t i = 0; i < kNumLayerParts; ++i) {
    sums.emplace_back(absl::StrCat("layer_", kPartNames[i], "_us_total"),
                      parts_[i].total_ns / 1000);
  }
  return sums;
}

}  // namespace tandem
