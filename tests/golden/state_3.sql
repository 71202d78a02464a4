BEGIN TRANSACTION;
CREATE TABLE counts (name TEXT PRIMARY KEY, value INTEGER NOT NULL);
INSERT INTO "counts" VALUES('accepted: in time',4);
CREATE TABLE devices (
    device_id TEXT PRIMARY KEY, heard_at_ms INTEGER NOT NULL, hello_json TEXT NOT NULL);
INSERT INTO "devices" VALUES('alpha',1000000,'{"type":"hello","version":"0.1.0","runtimes":["portable"],"examples":10,"encodings":["f32","f16"],"holds":[],"owes":[],"installation":"363e08d6fae20fa0"}');
INSERT INTO "devices" VALUES('beta',1000000,'{"type":"hello","version":"0.1.0","runtimes":["portable"],"examples":10,"encodings":["f32","f16"],"holds":[],"owes":[],"installation":"6338418064c99b87"}');
INSERT INTO "devices" VALUES('gamma',1000000,'{"type":"hello","version":"0.1.0","runtimes":["portable"],"examples":10,"encodings":["f32","f16"],"holds":[],"owes":[],"installation":"35ceda007a54261f"}');
CREATE TABLE events (
    sequence INTEGER PRIMARY KEY, at_ms INTEGER NOT NULL, event_json TEXT NOT NULL);
INSERT INTO "events" VALUES(1,1000000,'{"type":"Restarted"}');
INSERT INTO "events" VALUES(2,1000000,'{"type":"DeviceArrived","device_id":"gamma"}');
INSERT INTO "events" VALUES(3,1000000,'{"type":"UpdateAccepted","round_id":1,"device_id":"alpha","update_id":"4655b9876762a1a5d274178a","version":0}');
INSERT INTO "events" VALUES(4,1000000,'{"type":"UpdateAccepted","round_id":1,"device_id":"beta","update_id":"a452a2fbfd260bf4739e7d34","version":0}');
INSERT INTO "events" VALUES(5,1000000,'{"type":"UpdateAccepted","round_id":1,"device_id":"gamma","update_id":"d1df4188505e0b8e176fd327","version":0}');
INSERT INTO "events" VALUES(6,1000000,'{"type":"RoundAggregated","round_id":1}');
INSERT INTO "events" VALUES(7,1000000,'{"type":"UpdateAccepted","round_id":2,"device_id":"alpha","update_id":"05bcafa86130e113e224a638","version":1}');
CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL);
INSERT INTO "facts" VALUES('run_id','47d3eab420e54379');
INSERT INTO "facts" VALUES('bundle','1d460bd32866f3cfafcba6d3975a369733f09922ec5493c16a8298ba77055bf4');
INSERT INTO "facts" VALUES('federation','test');
INSERT INTO "facts" VALUES('round_state','{"phase":"collecting","round_id":2,"rounds_done":1,"model_version":1,"wanted":3,"quorum":3,"cohort":[{"device_id":"alpha","answer":"accepted","update_id":"05bcafa86130e113e224a638","round_id":2,"version":1},{"device_id":"beta","round_id":2,"version":1},{"device_id":"gamma","round_id":2,"version":1}],"deadline_at_ms":1060000,"online":["alpha","beta","gamma"],"reason":"1 of 3 updates are here; waiting for beta, gamma"}');
CREATE TABLE models (
    version INTEGER PRIMARY KEY, digest TEXT NOT NULL, size_bytes INTEGER NOT NULL,
    round_id INTEGER NOT NULL, made_at_ms INTEGER NOT NULL,
    metrics_json TEXT, held_out_json TEXT);
INSERT INTO "models" VALUES(0,'33581a650008a64043e9a877a3dbefd992c029c4bb4b833515ce19884ca02383',32,0,1000000,NULL,'{"examples":12,"measures":{"loss":[6.0,12.0],"accuracy":[9.0,12.0]}}');
INSERT INTO "models" VALUES(1,'b65bb66998b29eafbe53720298cca945ed5ef4fc38bea21b8866d2e09809bf5d',32,1,1000000,NULL,NULL);
CREATE TABLE rounds (
    round_id INTEGER PRIMARY KEY, kind TEXT NOT NULL, opened_at_ms INTEGER NOT NULL,
    closed_at_ms INTEGER, outcome TEXT NOT NULL DEFAULT 'open', reason TEXT NOT NULL DEFAULT '',
    cohort_json TEXT NOT NULL, base_version INTEGER NOT NULL,
    plan_json TEXT NOT NULL, encoding TEXT NOT NULL, norm_reference REAL, norm_factor REAL);
INSERT INTO "rounds" VALUES(1,'train',1000000,1000000,'done','','["alpha","beta","gamma"]',0,'{"learning_rate":0.1,"seed":1}','f32',NULL,10.0);
INSERT INTO "rounds" VALUES(2,'train',1000000,NULL,'open','','["alpha","beta","gamma"]',1,'{"learning_rate":0.1,"seed":2}','f32',1.83747186986095684124e-01,10.0);
CREATE TABLE standings (
    device_id TEXT PRIMARY KEY, strikes INTEGER NOT NULL, until_ms INTEGER NOT NULL,
    reason TEXT NOT NULL);
CREATE TABLE updates (
    update_id TEXT NOT NULL, round_id INTEGER NOT NULL, device_id TEXT NOT NULL,
    verdict TEXT NOT NULL, reason TEXT NOT NULL, at_ms INTEGER NOT NULL,
    examples INTEGER NOT NULL, training_ms INTEGER NOT NULL, payload_bytes INTEGER NOT NULL,
    update_json TEXT NOT NULL, digest TEXT, model TEXT, norm REAL, joined INTEGER, staleness INTEGER, PRIMARY KEY (round_id, device_id));
INSERT INTO "updates" VALUES('4655b9876762a1a5d274178a',1,'alpha','accepted','',1000000,10,5,32,'{"update_id":"4655b9876762a1a5d274178a","run_id":"47d3eab420e54379","round_id":1,"kind":"train","model":"33581a650008a64043e9a877a3dbefd992c029c4bb4b833515ce19884ca02383","examples":10,"blob":{"digest":"69444598f029fc9428ee4036b15b36dd02b643a59753dec2fbeecf15e0699120","size_bytes":32},"encoding":"f32","steps":1,"training_ms":5,"losses":[],"held_out":{"examples":4,"measures":{"loss":[2.0,4.0],"accuracy":[3.0,4.0]}}}','69444598f029fc9428ee4036b15b36dd02b643a59753dec2fbeecf15e0699120','33581a650008a64043e9a877a3dbefd992c029c4bb4b833515ce19884ca02383',1.82687124652317067763e-01,1,0);
INSERT INTO "updates" VALUES('a452a2fbfd260bf4739e7d34',1,'beta','accepted','',1000000,10,5,32,'{"update_id":"a452a2fbfd260bf4739e7d34","run_id":"47d3eab420e54379","round_id":1,"kind":"train","model":"33581a650008a64043e9a877a3dbefd992c029c4bb4b833515ce19884ca02383","examples":10,"blob":{"digest":"d9cc72715c7a2de00fef0676f024a827ac3313b4eb03454be8c07fb9e509a06a","size_bytes":32},"encoding":"f32","steps":1,"training_ms":5,"losses":[],"held_out":{"examples":4,"measures":{"loss":[2.0,4.0],"accuracy":[3.0,4.0]}}}','d9cc72715c7a2de00fef0676f024a827ac3313b4eb03454be8c07fb9e509a06a','33581a650008a64043e9a877a3dbefd992c029c4bb4b833515ce19884ca02383',1.83747186986095684124e-01,1,0);
INSERT INTO "updates" VALUES('d1df4188505e0b8e176fd327',1,'gamma','accepted','',1000000,10,5,32,'{"update_id":"d1df4188505e0b8e176fd327","run_id":"47d3eab420e54379","round_id":1,"kind":"train","model":"33581a650008a64043e9a877a3dbefd992c029c4bb4b833515ce19884ca02383","examples":10,"blob":{"digest":"a9939fec2bae1d2cc1d8e48888e020e3967cdb19dce0fcef71cd851bbea7cb4b","size_bytes":32},"encoding":"f32","steps":1,"training_ms":5,"losses":[],"held_out":{"examples":4,"measures":{"loss":[2.0,4.0],"accuracy":[3.0,4.0]}}}','a9939fec2bae1d2cc1d8e48888e020e3967cdb19dce0fcef71cd851bbea7cb4b','33581a650008a64043e9a877a3dbefd992c029c4bb4b833515ce19884ca02383',1.8416859142620564671e-01,1,0);
INSERT INTO "updates" VALUES('05bcafa86130e113e224a638',2,'alpha','accepted','',1000000,10,5,32,'{"update_id":"05bcafa86130e113e224a638","run_id":"47d3eab420e54379","round_id":2,"kind":"train","model":"b65bb66998b29eafbe53720298cca945ed5ef4fc38bea21b8866d2e09809bf5d","examples":10,"blob":{"digest":"4e1fa1a8d71e7e8f25f83374fee18590530d75b13600195ffe8a3324319c3be7","size_bytes":32},"encoding":"f32","steps":1,"training_ms":5,"losses":[],"held_out":{"examples":4,"measures":{"loss":[2.0,4.0],"accuracy":[3.0,4.0]}}}','4e1fa1a8d71e7e8f25f83374fee18590530d75b13600195ffe8a3324319c3be7','b65bb66998b29eafbe53720298cca945ed5ef4fc38bea21b8866d2e09809bf5d',1.64558364607297419324e-01,NULL,NULL);
CREATE INDEX updates_by_id ON updates (update_id, device_id);
CREATE INDEX updates_by_digest ON updates (digest);
CREATE INDEX updates_by_round_joined ON updates (joined);
COMMIT;
PRAGMA user_version = 3;
