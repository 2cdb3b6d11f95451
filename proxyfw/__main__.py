from proxyfw.cli import main

raise SystemExit(main())
