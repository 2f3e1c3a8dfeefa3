"""Other packages' signatures on dcnzoo's operators, and mends for the stack that dcnzoo runs on."""
