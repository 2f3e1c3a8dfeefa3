"""Read, check and write configs, without building anything from them. The modules:

- ``read.py`` reads a config and merges the options; ``json_config.py`` reads one in JSON; ``packages.py``
  finds bases in packages; ``type_names.py`` replaces classes by their registered names
- ``tree.py`` goes through the dictionaries of a config, finds the class of one, and the data sets
- ``check.py`` finds mistakes before anything is built; ``Use`` says which parts a command needs
- ``deformable.py``: the settings ``dcn``, ``stage_with_dcn`` and ``to_deformable``
- ``paths.py`` writes a config as text, with paths relative to its folder
- ``errors.py`` converts the errors of what is built from a config, so that they name its key

``runs/recipe.py`` reads, checks and writes the config of a run. MMEngine's own reading is changed in
``patches/configs.py``, and the building of models in ``patches/deformable_configs.py``.
"""
