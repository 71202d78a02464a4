BEGIN TRANSACTION;
CREATE TABLE counts (name TEXT PRIMARY KEY, value INTEGER NOT NULL);
CREATE TABLE devices (
    device_id TEXT PRIMARY KEY, heard_at_ms INTEGER NOT NULL, hello_json TEXT NOT NULL);
INSERT INTO "devices" VALUES('alpha',1000000,'{"type":"hello","version":"0.1.0","runtimes":["portable"],"examples":10,"encodings":["f32","f16"],"holds":[],"owes":[],"installation":""}');
INSERT INTO "devices" VALUES('beta',1000000,'{"type":"hello","version":"0.1.0","runtimes":["portable"],"examples":10,"encodings":["f32","f16"],"holds":[],"owes":[],"installation":""}');
INSERT INTO "devices" VALUES('gamma',1000000,'{"type":"hello","version":"0.1.0","runtimes":["portable"],"examples":10,"encodings":["f32","f16"],"holds":[],"owes":[],"installation":""}');
CREATE TABLE events (
    sequence INTEGER PRIMARY KEY, at_ms INTEGER NOT NULL, event_json TEXT NOT NULL);
INSERT INTO "events" VALUES(1,1000000,'{"type":"Restarted"}');
INSERT INTO "events" VALUES(2,1000000,'{"type":"DeviceArrived","device_id":"alpha"}');
INSERT INTO "events" VALUES(3,1000000,'{"type":"DeviceArrived","device_id":"beta"}');
INSERT INTO "events" VALUES(4,1000000,'{"type":"DeviceArrived","device_id":"gamma"}');
INSERT INTO "events" VALUES(5,1000000,'{"type":"UpdateAccepted","round_id":1,"device_id":"alpha","update_id":"5e99582c1b1d74445083cf52"}');
INSERT INTO "events" VALUES(6,1000000,'{"type":"UpdateAccepted","round_id":1,"device_id":"beta","update_id":"50565fb2fea7d23afb0a5137"}');
INSERT INTO "events" VALUES(7,1000000,'{"type":"UpdateAccepted","round_id":1,"device_id":"gamma","update_id":"e27843562fca8a79b5050e96"}');
INSERT INTO "events" VALUES(8,1000000,'{"type":"RoundAggregated","round_id":1}');
INSERT INTO "events" VALUES(9,1000000,'{"type":"UpdateAccepted","round_id":2,"device_id":"alpha","update_id":"5ca7933bedd0a0956f5157dd"}');
CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL);
INSERT INTO "facts" VALUES('run_id','7a5eb5e40be54a9e');
INSERT INTO "facts" VALUES('bundle','1d460bd32866f3cfafcba6d3975a369733f09922ec5493c16a8298ba77055bf4');
INSERT INTO "facts" VALUES('federation','test');
INSERT INTO "facts" VALUES('round_state','{"phase":"collecting","round_id":2,"kind":"train","rounds_done":1,"judged":false,"model_version":1,"wanted":3,"quorum":3,"cohort":[{"device_id":"alpha","answer":"accepted","update_id":"5ca7933bedd0a0956f5157dd"},{"device_id":"beta","answer":"none","update_id":""},{"device_id":"gamma","answer":"none","update_id":""}],"deadline_at_ms":1060000,"abandoned_in_a_row":0,"online":["alpha","beta","gamma"],"reason":"1 of 3 updates are here; waiting for beta, gamma"}');
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
    plan_json TEXT NOT NULL, encoding TEXT NOT NULL);
INSERT INTO "rounds" VALUES(1,'train',1000000,1000000,'done','','["alpha","beta","gamma"]',0,'{"epochs":1,"batch_size":10,"examples_at_once":128,"learning_rate":0.1,"optimizer":"sgd","momentum":0.0,"nesterov":false,"betas":[0.9,0.999],"epsilon":1e-8,"weight_decay":0.0,"proximal_mu":0.0,"clip_norm":null,"optimizer_state":"fresh","seed":1,"steps_max":null}','f32');
INSERT INTO "rounds" VALUES(2,'train',1000000,NULL,'open','','["alpha","beta","gamma"]',1,'{"epochs":1,"batch_size":10,"examples_at_once":128,"learning_rate":0.1,"optimizer":"sgd","momentum":0.0,"nesterov":false,"betas":[0.9,0.999],"epsilon":1e-8,"weight_decay":0.0,"proximal_mu":0.0,"clip_norm":null,"optimizer_state":"fresh","seed":2,"steps_max":null}','f32');
CREATE TABLE updates (
    update_id TEXT NOT NULL, round_id INTEGER NOT NULL, device_id TEXT NOT NULL,
    verdict TEXT NOT NULL, reason TEXT NOT NULL, at_ms INTEGER NOT NULL,
    examples INTEGER NOT NULL, training_ms INTEGER NOT NULL, payload_bytes INTEGER NOT NULL,
    update_json TEXT NOT NULL, PRIMARY KEY (round_id, device_id));
INSERT INTO "updates" VALUES('5e99582c1b1d74445083cf52',1,'alpha','accepted','',1000000,10,5,32,'{"update_id":"5e99582c1b1d74445083cf52","run_id":"7a5eb5e40be54a9e","round_id":1,"kind":"train","model":"33581a650008a64043e9a877a3dbefd992c029c4bb4b833515ce19884ca02383","examples":10,"blob":{"digest":"69444598f029fc9428ee4036b15b36dd02b643a59753dec2fbeecf15e0699120","size_bytes":32},"encoding":"f32","steps":1,"training_ms":5,"losses":[],"held_out":{"examples":4,"measures":{"loss":[2.0,4.0],"accuracy":[3.0,4.0]}}}');
INSERT INTO "updates" VALUES('50565fb2fea7d23afb0a5137',1,'beta','accepted','',1000000,10,5,32,'{"update_id":"50565fb2fea7d23afb0a5137","run_id":"7a5eb5e40be54a9e","round_id":1,"kind":"train","model":"33581a650008a64043e9a877a3dbefd992c029c4bb4b833515ce19884ca02383","examples":10,"blob":{"digest":"d9cc72715c7a2de00fef0676f024a827ac3313b4eb03454be8c07fb9e509a06a","size_bytes":32},"encoding":"f32","steps":1,"training_ms":5,"losses":[],"held_out":{"examples":4,"measures":{"loss":[2.0,4.0],"accuracy":[3.0,4.0]}}}');
INSERT INTO "updates" VALUES('e27843562fca8a79b5050e96',1,'gamma','accepted','',1000000,10,5,32,'{"update_id":"e27843562fca8a79b5050e96","run_id":"7a5eb5e40be54a9e","round_id":1,"kind":"train","model":"33581a650008a64043e9a877a3dbefd992c029c4bb4b833515ce19884ca02383","examples":10,"blob":{"digest":"a9939fec2bae1d2cc1d8e48888e020e3967cdb19dce0fcef71cd851bbea7cb4b","size_bytes":32},"encoding":"f32","steps":1,"training_ms":5,"losses":[],"held_out":{"examples":4,"measures":{"loss":[2.0,4.0],"accuracy":[3.0,4.0]}}}');
INSERT INTO "updates" VALUES('5ca7933bedd0a0956f5157dd',2,'alpha','accepted','',1000000,10,5,32,'{"update_id":"5ca7933bedd0a0956f5157dd","run_id":"7a5eb5e40be54a9e","round_id":2,"kind":"train","model":"b65bb66998b29eafbe53720298cca945ed5ef4fc38bea21b8866d2e09809bf5d","examples":10,"blob":{"digest":"4e1fa1a8d71e7e8f25f83374fee18590530d75b13600195ffe8a3324319c3be7","size_bytes":32},"encoding":"f32","steps":1,"training_ms":5,"losses":[],"held_out":{"examples":4,"measures":{"loss":[2.0,4.0],"accuracy":[3.0,4.0]}}}');
COMMIT;
PRAGMA user_version = 2;
