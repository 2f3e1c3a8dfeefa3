from dcnzoo.cli import main

main()
