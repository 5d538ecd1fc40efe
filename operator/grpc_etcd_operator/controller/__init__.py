"""What ties the edges together: events to facts, facts to plans, plans to etcd, and what is told of it."""
