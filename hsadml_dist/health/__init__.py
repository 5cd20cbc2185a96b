"""Health of the ranks: heartbeats, watchdogs that end a hang, straggler detection, and reports on lost peers."""
