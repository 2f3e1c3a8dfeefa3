"""What several tests use. Tests import it from here, never from a test_*.py.

checkpoints  An object in a checkpoint that runs code.
commands     Run commands in this process.
comparison   Comparisons of other programs' functions with dcnzoo.ops.reference.
demo         The demo's configs, shortened to trainings of seconds, and functions that build models.
detectors    Small detectors of each family, whose weights detect objects, and their predictions.
explained    Explanations of made-up layers, and the data in their pages.
folders      Folders of annotated pictures as tools document their exports, with the truth about them.
formats      Annotations in the formats of docs/train_your_data.md, and data sets of drawn fruits in each …
fused        Samples for the Triton kernels, and their comparison with the reference.
graphs       Export modules by torch's exporters, and run the files.
interpreter  Run Triton's interpreter in a separate process, because Triton selects it when it is imported.
large        Tensors of more than 2³¹ elements.
launching    Helpers for tests that start tools in one or several processes.
layers       Every public layer, with inputs.
modules      Helpers for tests of modules.
not_finite   Inf and NaN in the arguments of operators.
operators    Calls of operators, and comparisons of their results.
patching     Tests without a patch.
plans        The registered operators' calls, and the tensors in them.
processes    Start Python in a new process.
products     Parametrize over a product, of which ``make test`` runs a part and ``make test-all`` …
server       A local server that simulates interrupted and failed downloads.
torchvision  Arguments of torchvision's deform_conv2d.
training     Trainings that take less than a second, with a model of one weight.
variants     The demo's detector with other settings.
"""
