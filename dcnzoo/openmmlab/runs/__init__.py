"""Train, test or build the model of a config. The modules, in the order of a training:

- ``recipe.py`` reads and checks a config; ``options.py`` and ``epochs.py`` write the options of a run
  into it
- ``start.py`` decides from which checkpoint a training starts, and locks its work directory
- ``device.py`` and ``ranks.py``: the device, and the processes of a distributed run
- ``build.py`` makes a runner of the config, with the class in ``runner.py``; or only the model
- ``sanity.py`` predicts one picture first; ``dry_run.py`` trains one step, and stops
- ``separate_run.py``, ``loading.py`` and ``interruption.py``: the contexts in which a runner runs

``execute.py`` takes these steps. ``hooks/resume.py`` has the steps of a training that is continued.
"""
