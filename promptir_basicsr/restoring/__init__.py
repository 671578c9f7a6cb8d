"""How `basicsr restore` plans and does its work."""
