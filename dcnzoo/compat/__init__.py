"""Other packages' signatures on dcnzoo's operators, and patches of other packages."""
