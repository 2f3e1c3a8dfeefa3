"""Interfaces of other packages on dcnzoo's operators, and patches of other packages."""
