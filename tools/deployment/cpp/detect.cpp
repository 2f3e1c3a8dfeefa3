// Run a package of `dcnzoo export --out MODEL.pt2` in C++: detect MODEL.pt2 dcnzoo/ops/_C_cpu.so IMAGE.ppm
// Prints a line per object: label, score, x1 y1 x2 y2 in pixels of the image. Needs libtorch, but no Python.
#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>
#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>

// The next word of a PPM's head. A comment reaches from # to the end of the line.
std::string word(std::istream& file) {
  std::string text, comment;
  while (file >> text) {
    const size_t end = text.find('#');
    if (end == std::string::npos) return text;
    std::getline(file, comment);
    if (end > 0) return text.substr(0, end);
  }
  return "";
}

// Read a binary PPM: [1, 3, H, W], float, channels in the order red, green, blue.
at::Tensor read_image(const char* path) {
  std::ifstream file(path, std::ios::binary);
  TORCH_CHECK(file, path, ": cannot be read: ", std::strerror(errno));
  const std::string kind = word(file);
  int64_t width = std::atoll(word(file).c_str()), height = std::atoll(word(file).c_str());
  int64_t largest = std::atoll(word(file).c_str());
  bool valid = kind == "P6" && largest == 255 && width > 0 && height > 0 && width < 1 << 20 && height < 1 << 20;
  TORCH_CHECK(valid, path, ": expected a binary PPM (P6) with 8 bits");
  at::Tensor pixels = at::empty({height, width, 3}, at::kByte);
  file.ignore().read(static_cast<char*>(pixels.data_ptr()), pixels.numel());
  TORCH_CHECK(file.gcount() == pixels.numel(), path, ": expected ", pixels.numel(), " bytes, got ", file.gcount());
  return pixels.permute({2, 0, 1}).unsqueeze(0).to(at::kFloat);
}

// Read the list of numbers after "key": in the package's metadata, which is JSON.
std::vector<double> numbers(const std::string& json, const std::string& key) {
  const char* place = json.c_str() + json.find('"' + key + '"') + key.size() + 3;
  std::vector<double> found;
  for (char* end; place += std::strspn(place, " [,"), *place != ']'; place = end)
    found.push_back(std::strtod(place, &end));
  return found;
}

void detect(int argc, char** argv) {
  TORCH_CHECK(argc == 4, "usage: detect MODEL.pt2 _C_cpu.so IMAGE.ppm");
  c10::InferenceMode no_gradients;
  const std::string package = argv[1], library = argv[2];
  TORCH_CHECK(package.size() > 4 && package.substr(package.size() - 4) == ".pt2", package,
              ": expected a package of dcnzoo export --out MODEL.pt2");
  TORCH_CHECK(std::ifstream(package), package, ": cannot be read: ", std::strerror(errno));
  // a name without a slash is searched only in the system's folders; this registers dcnzoo's operators
  const std::string prefix = library.find('/') == std::string::npos ? "./" : "";
  TORCH_CHECK(dlopen((prefix + library).c_str(), RTLD_NOW), dlerror());
  at::Tensor image = read_image(argv[3]);
  torch::inductor::AOTIModelPackageLoader model(package);
  auto texts = model.get_metadata();
  for (const char* key : {"dcnzoo", "dcnzoo.names"})
    TORCH_CHECK(texts.count(key), argv[1], ": expected a detector of dcnzoo export, got no metadata ", key);
  auto room = numbers(texts.at("dcnzoo.names"), "input");  // 1, 3, height, width
  auto channels = [&](const char* key) {
    return at::tensor(at::ArrayRef<double>(numbers(texts.at("dcnzoo"), key)), at::kFloat).view({1, 3, 1, 1});
  };

  double scale = std::min(room[2] / image.size(2), room[3] / image.size(3));
  int64_t height = image.size(2) * scale + 0.5, width = image.size(3) * scale + 0.5;
  image = at::upsample_bilinear2d(image, {height, width}, false);
  if (texts.at("dcnzoo").find("\"rgb\": false") != std::string::npos) image = image.flip(1);
  at::Tensor input = at::zeros({1, 3, int64_t(room[2]), int64_t(room[3])});
  input.narrow(2, 0, height).narrow(3, 0, width).copy_((image - channels("mean")) / channels("std"));

  std::vector<at::Tensor> inputs{input};
  if (texts.at("dcnzoo.names").find("\"img_shape\"") != std::string::npos)
    inputs.push_back(at::tensor({height, width}, at::kLong).unsqueeze(0));
  auto outputs = model.run(inputs);  // dets [1, K, 5], labels [1, K], and masks
  TORCH_CHECK(outputs.size() >= 2, argv[1], ": expected the outputs dets and labels");
  for (int64_t i = 0; i < outputs[1].size(1) && outputs[1][0][i].item<int64_t>() >= 0; ++i) {
    at::Tensor box = outputs[0][0][i];
    std::printf("%d %.6f", outputs[1][0][i].item<int>(), box[4].item<double>());
    for (int j = 0; j < 4; ++j) std::printf(" %.3f", box[j].item<double>() / scale);
    std::printf("\n");
  }
}

int main(int argc, char** argv) try {
  detect(argc, argv);
} catch (const std::exception& error) {
  auto known = dynamic_cast<const c10::Error*>(&error);
  std::string text = known ? known->what_without_backtrace() : error.what();
  std::fprintf(stderr, "detect: %s\n", text.substr(0, text.find('\n')).c_str());
  return 1;
}
