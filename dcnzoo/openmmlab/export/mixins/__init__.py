"""Mixins for classes of MMDetection and mmcv: their methods are traced in place of the part's own.

A part of the copy that is traced gets the class ``type(name, (Mixin, type(part)), {})``: see
:func:`dcnzoo.openmmlab.export.rules.copy_for_tracing`. ``super()`` is the part's own class. The score
``ABSENT`` marks unused boxes.
"""
