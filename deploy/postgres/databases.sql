-- Makes the three databases, each with an owner of its own who cannot connect to the others. psql reads the passwords
-- from the environment. The image of PostgreSQL runs this file when its volume is empty; on a server without a container:
-- RESULTS_PASSWORD=... MLFLOW_PASSWORD=... PREFECT_PASSWORD=... psql --set ON_ERROR_STOP=1 --file databases.sql postgres

\getenv results_password RESULTS_PASSWORD
CREATE ROLE results LOGIN PASSWORD :'results_password';
CREATE DATABASE results OWNER results;
REVOKE ALL ON DATABASE results FROM PUBLIC;

\getenv mlflow_password MLFLOW_PASSWORD
CREATE ROLE mlflow LOGIN PASSWORD :'mlflow_password';
CREATE DATABASE mlflow OWNER mlflow;
REVOKE ALL ON DATABASE mlflow FROM PUBLIC;

\getenv prefect_password PREFECT_PASSWORD
CREATE ROLE prefect LOGIN PASSWORD :'prefect_password';
CREATE DATABASE prefect OWNER prefect;
REVOKE ALL ON DATABASE prefect FROM PUBLIC;
