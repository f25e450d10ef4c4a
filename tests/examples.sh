# Each curl command of the documents 000, 001 and 002 under requirement, as it stands there (in 000 there are only some
# of 001's), in its order. Above each: a part of the answer that it gets. Blank lines stand between commands.

# "object":"chat.completion"
curl -X POST http://localhost:3002/openai \
-H "Content-Type: application/json" \
-d '{
"security_key": "your-secret-key",
"model": "gpt-4o-mini",
"messages": [
{"role": "system", "content": "You are a helpful assistant."},
{"role": "user", "content": "What is TypeScript?"}
],
"temperature": 0.7,
"max_tokens": 500
}'

# "object":"chat.completion"
curl -X POST http://localhost:3002/openai \
-H "Content-Type: application/json" \
-d '{
"security_key": "your-secret-key",
"model": "gpt-4o",
"messages": [
{"role": "user", "content": "What is in this image?"}
],
"image": {
"url": "https://upload.wikimedia.org/wikipedia/commons/thumb/a/a7/Camponotus_flavomarginatus_ant.jpg/800px-Camponotus_flavomarginatus_ant.jpg"
}
}'

# "object":"response"
curl -X POST http://localhost:3002/openai2 \
-H "Content-Type: application/json" \
-d '{
"security_key": "your-secret-key",
"model": "gpt-4o",
"input": "Tell me a three sentence bedtime story about a unicorn."
}'

# "object":"response"
curl -X POST http://localhost:3002/openai2 \
-H "Content-Type: application/json" \
-d '{
"security_key": "your-secret-key",
"model": "gpt-4o",
"instructions": "You are a helpful coding assistant. Always provide code examples.",
"input": "How do I read a file in Python?"
}'

# "object":"response"
curl -X POST http://localhost:3002/openai2 \
-H "Content-Type: application/json" \
-d '{
"security_key": "your-secret-key",
"model": "gpt-4o",
"input": "What are the latest news about AI?",
"tools": [
{ "type": "web_search_preview" }
],
"include": ["web_search_call.action.sources"]
}'

# "object":"response"
curl -X POST http://localhost:3002/openai2 \
-H "Content-Type: application/json" \
-d '{
"security_key": "your-secret-key",
"model": "gpt-4o",
"input": "What does the documentation say about authentication?",
"tools": [
{
"type": "file_search",
"vector_store_ids": ["vs_abc123"],
"max_num_results": 10
}
],
"include": ["file_search_call.results"]
}'

# "type":"function_call"
curl -X POST http://localhost:3002/openai2 \
-H "Content-Type: application/json" \
-d '{
"security_key": "your-secret-key",
"model": "gpt-4o",
"input": "What is the weather in San Francisco?",
"tools": [
{
"type": "function",
"name": "get_weather",
"description": "Get current weather for a location",
"parameters": {
"type": "object",
"properties": {
"location": { "type": "string", "description": "City name" },
"unit": { "type": "string", "enum": ["celsius", "fahrenheit"] }
},
"required": ["location"]
}
}
]
}'

# "object":"response"
curl -X POST http://localhost:3002/openai2 \
-H "Content-Type: application/json" \
-d '{
"security_key": "your-secret-key",
"model": "gpt-4o",
"input": "Search my Google Drive for Q4 reports",
"tools": [
{
"type": "mcp",
"server_label": "google-drive",
"server_url": "https://mcp.example.com/google-drive",
"allowed_tools": ["search_files", "read_file"]
}
]
}'

# "object":"response"
curl -X POST http://localhost:3002/openai2 \
-H "Content-Type: application/json" \
-d '{
"security_key": "your-secret-key",
"model": "gpt-4o",
"input": [
{ "type": "input_text", "text": "What is in this image?" },
{ "type": "input_image", "image_url": "https://example.com/image.png" }
]
}'

# "object":"response"
curl -X POST http://localhost:3002/openai2 \
-H "Content-Type: application/json" \
-d '{
"security_key": "your-secret-key",
"model": "gpt-4o",
"input": "My name is Alice."
}'

# "object":"response"
curl -X POST http://localhost:3002/openai2 \
-H "Content-Type: application/json" \
-d '{
"security_key": "your-secret-key",
"model": "gpt-4o",
"input": "What is my name?",
"previous_response_id": "resp_abc123..."
}'

# event: response.completed
curl -X POST http://localhost:3002/openai2 \
-H "Content-Type: application/json" \
-d '{
"security_key": "your-secret-key",
"model": "gpt-4o",
"input": "Write a short poem about coding.",
"stream": true
}'

# "object":"response.compaction"
curl -X POST http://localhost:3002/openai2/compact \
-H "Content-Type: application/json" \
-d '{
"security_key": "your-secret-key",
"model": "gpt-5",
"input": "Summarize this long-running conversation."
}'

# "object":"response.input_tokens"
curl -X POST http://localhost:3002/openai2/input_tokens \
-H "Content-Type: application/json" \
-d '{
"security_key": "your-secret-key",
"model": "gpt-4o",
"input": "Count the tokens in this prompt."
}'

# "object":"list"
curl "http://localhost:3002/openai2/resp_abc123/input_items?security_key=your-secret-key&limit=20&order=desc"

# person_info
curl -X POST http://localhost:3002/openai2 \
-H "Content-Type: application/json" \
-d '{
"security_key": "your-secret-key",
"model": "gpt-4o",
"input": "Extract the name and age from: John is 30 years old.",
"text": {
"format": {
"type": "json_schema",
"name": "person_info",
"schema": {
"type": "object",
"properties": {
"name": { "type": "string" },
"age": { "type": "integer" }
},
"required": ["name", "age"]
}
}
}
}'

# "object":"response"
curl -X POST http://localhost:3002/openai2 \
-H "Content-Type: application/json" \
-d '{
"security_key": "your-secret-key",
"model": "o3",
"input": "Solve this complex math problem: ...",
"reasoning": {
"effort": "high",
"summary": "auto"
}
}'

# "type":"function_call"
curl -X POST http://localhost:3002/openai2 \
-H "Content-Type: application/json" \
-d '{
"security_key": "your-secret-key",
"model": "gpt-4o",
"input": "Find the current stock price of Apple and calculate a 10% increase",
"tools": [
{ "type": "web_search_preview" },
{
"type": "function",
"name": "calculate_percentage",
"description": "Calculate percentage of a number",
"parameters": {
"type": "object",
"properties": {
"number": { "type": "number" },
"percentage": { "type": "number" }
},
"required": ["number", "percentage"]
}
}
],
"parallel_tool_calls": true
}'

# "object":"response"
curl "http://localhost:3002/openai2/resp_abc123?security_key=your-secret-key"

# "deleted":true
curl -X DELETE "http://localhost:3002/openai2/resp_abc123?security_key=your-secret-key"

# "status":"cancelled"
curl -X POST http://localhost:3002/openai2/resp_abc123/cancel \
-H "Content-Type: application/json" \
-d '{ "security_key": "your-secret-key" }'

# "object":"list"
curl "http://localhost:3002/openai2/resp_abc123/input_items?security_key=your-secret-key"

# "role": "assistant"
curl -X POST http://localhost:3002/chatgpt \
-H "Content-Type: application/json" \
-d '{
"security_key": "your-secret-key",
"prompt": "Explain quantum computing in simple terms",
"model": "gpt-4o-mini",
"temperature": 0.8
}'

# Your file audio.mp3 arrived
curl -X POST http://localhost:3002/openai/audio/transcriptions \
-F "file=@audio.mp3" \
-F "security_key=your-secret-key" \
-F "model=whisper-1" \
-F "language=en" \
-F "response_format=json"

# "object":"embedding"
curl -X POST http://localhost:3002/embeddings \
-H "Content-Type: application/json" \
-d '{
"security_key": "your-secret-key",
"input": "The quick brown fox jumps over the lazy dog",
"model": "text-embedding-3-small",
"dimensions": 512
}'

# "object":"chat.completion"
curl -X POST http://localhost:3000/api/openai/v1/chat/completions \
    -H "Content-Type: application/json" \
    -d '{
        "model": "gpt-4o-mini",
        "messages": [{"role": "user", "content": "Say hello to the world."}],
        "max_tokens": 10
    }'
