// Detect objects with a file of `dcnzoo export --out MODEL.xml --shape H W`, in C++: detect MODEL.xml IMAGE.ppm
// Prints a line per object: label, score, x1 y1 x2 y2 in pixels of the image. Needs OpenVINO alone.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <openvino/openvino.hpp>

struct Image {
  int height, width;
  std::vector<unsigned char> pixels;  // height, width, 3: red, green, blue
};

// Read a binary PPM with 8 bits and without comments.
Image read_image(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::string kind;
  int largest = 0;
  Image image{};
  file >> kind >> image.width >> image.height >> largest;
  if (!file || kind != "P6" || largest != 255)
    throw std::runtime_error(path + ": expected a binary PPM (P6) with 8 bits");
  image.pixels.resize(size_t(image.height) * image.width * 3);
  file.ignore().read(reinterpret_cast<char*>(image.pixels.data()), image.pixels.size());
  if (!file) throw std::runtime_error(path + ": expected " + std::to_string(image.pixels.size()) + " bytes");
  return image;
}

// Read the list of numbers after "key": in the file's metadata, which is JSON.
std::vector<double> numbers(const std::string& json, const std::string& key) {
  const char* place = json.c_str() + json.find('"' + key + '"') + key.size() + 3;
  std::vector<double> result;
  for (char* end; place += std::strspn(place, " [,"), *place != ']'; place = end)
    result.push_back(std::strtod(place, &end));
  return result;
}

void detect(const std::string& path, const std::string& picture) {
  const Image image = read_image(picture);
  ov::Core core;
  auto model = core.read_model(path);
  const auto json = model->get_rt_info<ov::AnyMap>("framework").at("dcnzoo").as<std::string>();
  const auto mean = numbers(json, "mean"), std = numbers(json, "std");
  const bool rgb = json.find("\"rgb\": false") == std::string::npos;
  auto request = core.compile_model(model, "CPU", {{"INFERENCE_PRECISION_HINT", "f32"}}).create_infer_request();

  ov::Tensor input = request.get_tensor("input");  // 1, 3, rows, columns
  const int rows = input.get_shape()[2], columns = input.get_shape()[3];
  const double scale = std::min(double(rows) / image.height, double(columns) / image.width);
  const int height = image.height * scale + 0.5, width = image.width * scale + 0.5;
  float* values = input.data<float>();
  std::fill_n(values, input.get_size(), 0.f);  // pads at right and bottom
  for (int channel = 0; channel < 3; ++channel)
    for (int row = 0; row < height; ++row)
      for (int column = 0; column < width; ++column) {
        // bilinear; the centre of pixel i is at i + 0.5
        const double y = std::max(0.0, (row + 0.5) * image.height / height - 0.5);
        const double x = std::max(0.0, (column + 0.5) * image.width / width - 0.5);
        double value = 0;
        for (int i : {0, 1})
          for (int j : {0, 1}) {
            const int py = std::min(int(y) + i, image.height - 1), px = std::min(int(x) + j, image.width - 1);
            const double weight = std::abs(1 - i - (y - int(y))) * std::abs(1 - j - (x - int(x)));
            value += weight * image.pixels[(size_t(py) * image.width + px) * 3 + (rgb ? channel : 2 - channel)];
          }
        values[(size_t(channel) * rows + row) * columns + column] = (value - mean[channel]) / std[channel];
      }
  if (model->inputs().size() > 1) {
    auto* size = request.get_tensor("img_shape").data<int64_t>();
    size[0] = height;
    size[1] = width;
  }
  request.infer();
  const ov::Tensor boxes = request.get_tensor("dets"), labels = request.get_tensor("labels");
  for (size_t i = 0; i < labels.get_size() && labels.data<int64_t>()[i] >= 0; ++i) {
    const float* box = boxes.data<float>() + 5 * i;
    std::printf("%d %.6f", int(labels.data<int64_t>()[i]), box[4]);
    for (int j = 0; j < 4; ++j) std::printf(" %.3f", box[j] / scale);
    std::printf("\n");
  }
}

int main(int argc, char** argv) try {
  if (argc != 3) throw std::runtime_error("usage: detect MODEL.xml IMAGE.ppm");
  detect(argv[1], argv[2]);
} catch (const std::exception& error) {
  std::fprintf(stderr, "detect: %s\n", error.what());
  return 1;
}
