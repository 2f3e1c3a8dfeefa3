def pytest_addoption(parser):
    parser.addoption("--from", metavar="FOLDER", help="clones of the projects of test_projects.py")
